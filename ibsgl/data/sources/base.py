"""The base class of data sources. A source has the keys under ``data`` in the config, and makes an index of its images."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ibsgl.data.download import Download
from ibsgl.data.index import Index
from ibsgl.settings import ProperFraction, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The size of a split: its images, and its (image, class) pairs."""

    images: int
    pairs: int


@dataclass(frozen=True)
class Counts:
    """The sizes of the lists and the number of classes.

    Attributes:
        train, test: the training list with the held-out images, and the test list.
        origin: where the numbers come from.
        further: images on which only the accuracy is measured.
    """

    train: Split
    test: Split
    classes: int
    origin: str
    further: Split = Split(0, 0)


class DataSource(Settings, ABC):
    """A kind of data set. Its fields are the keys under ``data``, and its methods read the images.

    A subclass in a module of :mod:`ibsgl.data.sources` is found by the value of its field ``source``.

    Attributes:
        generated: whether :meth:`generate` makes the images. Otherwise they are in a folder of the user, or are downloaded.
        watched: whether the index is made again after a change in the folder. This reads the names and dates of all files,
            which is too slow for a million files.
        place_keys: the keys that decide where the images are or how they are used, but not what the index contains.
    """

    generated: ClassVar[bool] = False
    watched: ClassVar[bool] = True
    place_keys: ClassVar[frozenset[str]] = frozenset({"root", "download", "multilabel"})

    source: str = Field(description="the kind of data set")
    held_out: ProperFraction = Field(
        0.1,
        description="share of the training images that is set aside by a hash of their ids. There the effect of guidance is "
        "measured and a collapse is noticed",
    )
    multilabel: bool = Field(
        False, description="an image may show several classes: binary cross-entropy and sigmoid instead of softmax"
    )

    @property
    def folder(self) -> str | None:
        """The folder with the images, or ``None``: a folder among the results."""
        return None

    @property
    def archives(self) -> Download | None:
        """The download of the folder, or ``None`` if it cannot be downloaded."""
        return None

    @property
    def list_settings(self) -> dict[str, Any]:
        """The settings that are compared with the published ones: the test list, and how difficult objects count."""
        return {"split": "test", "difficult": "keep"}

    def check(self) -> None:
        """Raise ``ValueError`` if keys do not fit together. The message begins with a key."""

    @abstractmethod
    def test_images(self, root: Path) -> int:
        """The number of images in the test list. The index later leaves out images without an object."""

    @abstractmethod
    def count(self, root: Path, images: Mapping[str, int]) -> Counts:
        """The sizes for the plan of a run.

        Args:
            root: the folder with the images, which may not exist yet.
            images: number of images by list, for data that does not exist yet.

        Raises:
            ValueError: the number of images is not known.
        """

    def generate(self, root: Path, seed: int) -> None:
        """Make the images in the new folder ``root``. Only sources with ``generated`` have this method."""
        raise ValueError(f"data.source: {self.source} does not generate images")

    @abstractmethod
    def build_index(self, root: Path, seed: int) -> Index:
        """Read and check the images at ``root``. ``seed`` decides which images are held out."""

    def read(self, root: Path, seed: int) -> Index:
        """The index of :meth:`build_index`; ``ValueError`` if there is one class alone, or one that only test images show."""
        index = self.build_index(root, seed)
        if len(index.class_names) < 2:
            raise ValueError(f"{root}: there is only one class, {index.class_names[0]!r}; a classifier needs two")
        shown = {split: set(rows) for split, rows in index.table.groupby("split")["class_name"]}
        untrained = shown.get("test", set()) - shown.get("train", set())
        if unseen := sorted(untrained - shown.get("held_out", set())):
            raise ValueError(
                f"{root}: test images show {unseen[0]!r} and no training image does ({len(unseen)} such classes); train on "
                "images of it, or leave its test images out"
            )
        for name in sorted(untrained):
            log.warning("%s: all training images that show %r are held out, so no network is trained on it", root, name)
        return index

    def index_settings(self) -> dict[str, Any]:
        """The keys that decide the content of the index of a given folder."""
        return self.model_dump(exclude=set(self.place_keys))
