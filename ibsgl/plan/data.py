"""The sizes of a run's data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ibsgl.config import Config
from ibsgl.data.index import Index
from ibsgl.data.sources import Counts, Split


@dataclass(frozen=True)
class DataFacts:
    """The sizes of a data set.

    Attributes:
        splits: the size of each split: ``train``, ``held_out``, ``test``, and ``further`` if there are such images.
        classes: number of classes.
        origin: where the numbers come from, for people.
    """

    splits: dict[str, Split]
    classes: int
    origin: str


def data_facts(config: Config, images: Mapping[str, int] | None = None, run: str | None = None) -> DataFacts:
    """The sizes of the data set of ``config``.

    If the run has an index, they are those of the index. Otherwise ``config.data`` counts.

    Args:
        images: number of images by list (``{"trainval": 5011, "test": 4952}``), for data that does not exist yet. By default
            the config's ``data.download.images``.
        run: the run's folder among the results; by default ``config.name``.

    Raises:
        ValueError: the number of images is unknown.
    """
    index = Path(f"results/{run or config.name}/index.parquet")
    if index.is_file():
        return _of_index(Index.load(index), f"counted in {index}")
    counts = config.data.count(Path(config.data_root), images or {})
    return _with_held_out(counts, config.data.held_out)


def _of_index(index: Index, origin: str) -> DataFacts:
    rows_of_splits = index.table.groupby("split", sort=False)
    splits = {str(split): Split(rows["image_id"].nunique(), len(rows)) for split, rows in rows_of_splits}
    return DataFacts(splits, len(index.class_names), origin)


def _with_held_out(counts: Counts, share: float) -> DataFacts:
    """``counts`` with the held-out images taken out of the training images, and with them their share of the pairs."""
    train = counts.train
    images = round(share * train.images)
    pairs = round(train.pairs * images / train.images)
    splits = {
        "train": Split(train.images - images, train.pairs - pairs),
        "held_out": Split(images, pairs),
        "test": counts.test,
    } | ({"further": counts.further} if counts.further.images else {})
    return DataFacts(splits, counts.classes, counts.origin)
