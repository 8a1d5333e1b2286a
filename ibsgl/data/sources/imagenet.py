"""ILSVRC 2012 in its usual layouts (Russakovsky et al. 2015), with one class per image.

Training images are ``train/<synset>/*.JPEG``. Validation images are ``val/<synset>/*.JPEG``, or all in one folder with a
ground-truth file. Boxes are XML files. ``val`` is the test split. Classes are the synsets in alphabetical order, as in
torchvision's weights.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

from pydantic import Field

from ibsgl.data.image_files import open_image
from ibsgl.data.index import Index, as_table, set_aside
from ibsgl.data.sources.base import Counts, DataSource, Split
from ibsgl.data.sources.voc import stated_size
from ibsgl.randomness import derive_seed
from ibsgl.settings import Positive

log = logging.getLogger(__name__)

_SYNSET = re.compile(r"n\d{8}")
_IMAGES = {".jpeg", ".jpg", ".png"}
# Paths below the root, or below its folder ILSVRC (Kaggle's archive).
_PLACES = {
    "train": ("train", "ILSVRC2012_img_train", "Data/CLS-LOC/train"),
    "val": ("val", "ILSVRC2012_img_val", "Data/CLS-LOC/val"),
    "train boxes": ("Annotations/CLS-LOC/train", "Annotations/train", "ILSVRC2012_bbox_train_v2"),
    "val boxes": ("Annotations/CLS-LOC/val", "Annotations/val", "ILSVRC2012_bbox_val_v3/val", "ILSVRC2012_bbox_val_v3"),
    "mapping": ("LOC_synset_mapping.txt",),
    "solution": ("LOC_val_solution.csv",),
    "ground truth": tuple(
        f"{folder}ILSVRC2012_validation_ground_truth.txt" for folder in ("", "data/", "ILSVRC2012_devkit_t12/data/")
    ),
}


def _find(root: Path, part: str) -> Path | None:
    places = [base / place for base in (root, root / "ILSVRC") for place in _PLACES[part]]
    return next((place for place in places if place.exists()), None)


def _needed(root: Path, part: str) -> Path:
    found = _find(root, part)
    if found is None:
        raise ValueError(f"{root}: ImageNet's {part} is missing; its path may be {' or '.join(_PLACES[part])}")
    return found


def _files(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in _IMAGES)


def _synset_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _SYNSET.fullmatch(entry.name) and entry.is_dir())


def _by_folder(folder: Path) -> dict[str, list[Path]]:
    """The images of each synset, in the order of their names."""
    return {synset: [folder / synset / name for name in _files(folder / synset)] for synset in _synset_folders(folder)}


def _words(path: Path) -> dict[str, str]:
    """Synset → its first word, from lines like ``n01440764 tench, Tinca tinca``. If two synsets have the same word, the name
    has the synset too.
    """
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    bad = [line for line in lines if len(line) < 2 or not _SYNSET.fullmatch(line[0])]
    if bad:
        raise ValueError(f"{path}: a line must be a synset and its words, not {' '.join(bad[0])!r}")
    words = {synset: text.partition(",")[0].strip() for synset, text in lines}
    times = Counter(words.values())
    return {synset: word if times[word] == 1 else f"{word} ({synset})" for synset, word in words.items()}


def _solution(path: Path) -> dict[str, str]:
    """Image id → synset, from Kaggle's table ``ImageId,PredictionString`` (a synset and four numbers for every box)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    bad = [row for row in rows if len(row) != 2 or not _SYNSET.match(row[1].strip())]
    if bad:
        raise ValueError(f"{path}: a row must be an image and its synset with boxes, not {','.join(bad[0])!r}")
    return {row[0]: row[1].split()[0] for row in rows}


def _devkit_order(folder: Path) -> dict[int, str]:
    """Class number of the devkit → synset. The devkit's order is not alphabetical."""
    if (folder / "meta.mat").is_file():
        from scipy.io import loadmat

        try:
            entries = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
            return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in entries}
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise ValueError(f"{folder / 'meta.mat'}: not the devkit's list of synsets ({error})") from error
    path = folder / "synsets.txt"
    if not path.is_file():
        raise ValueError(
            f"{folder}: the synsets of the numbers in the ground truth are missing; put the devkit's meta.mat beside it, or "
            "synsets.txt with one synset per line in the devkit's order"
        )
    lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return dict(enumerate(lines, 1))


def _ground_truth(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Image id → synset. The n-th line is the class number of the n-th image."""
    numbers, order = path.read_text().split(), _devkit_order(path.parent)
    if len(numbers) != len(ids):
        raise ValueError(f"{path}: {len(numbers)} lines for {len(ids)} images; there must be one for each image")
    try:
        return {image_id: order[int(number)] for image_id, number in zip(sorted(ids), numbers, strict=True)}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error.args[0]} is not the number of a synset") from None


def _validation(root: Path) -> dict[str, list[Path]]:
    """The validation images of each synset, in the order of their names."""
    folder = _needed(root, "val")
    if _synset_folders(folder):
        return _by_folder(folder)
    paths = {Path(name).stem: folder / name for name in _files(folder)}
    solution, truth = _find(root, "solution"), _find(root, "ground truth")
    if solution is not None:
        labels = _solution(solution)
    elif truth is not None:
        labels = _ground_truth(truth, list(paths))
    else:
        raise ValueError(
            f"{folder}: there are no synset folders, so the classes of the images must be in {_PLACES['solution'][0]} or "
            f"{_PLACES['ground truth'][0]} in {root}"
        )
    unknown = sorted(paths.keys() - labels.keys())
    if unknown:
        raise ValueError(f"{solution or truth}: the image {unknown[0]!r} is missing ({len(unknown)} such images)")
    found: dict[str, list[Path]] = {}
    for image_id in sorted(paths):
        found.setdefault(labels[image_id], []).append(paths[image_id])
    return found


def _chosen(paths: Iterable[Path], number: int | None, seed: int) -> list[Path]:
    """``number`` of ``paths``, chosen by a hash of the names, in their order."""
    paths = list(paths)
    ranked = sorted(paths, key=lambda path: (derive_seed(seed, "imagenet", path.stem), path.stem))
    kept = set(ranked[:number])
    return [path for path in paths if path in kept]


def _boxes(content: bytes, path: Path, synset: str, width: int, height: int) -> list[list[int]]:
    """The boxes of ``synset``, 0-based and half-open, in pixels of the file. They are clipped to the image.

    In the annotation, boxes start at 1 as in VOC (0 is taken as 1), and refer to the annotation's size. The file's size may
    differ.
    """
    boxes = []
    try:
        annotation = ElementTree.fromstring(content)
        stated = stated_size(annotation) or (width, height)
        for item in annotation.iterfind("object"):
            if (item.findtext("name") or "").strip() != synset:
                continue
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            x, y = width / stated[0], height / stated[1]
            box = [round((left - 1) * x), round((top - 1) * y), round(right * x), round(bottom * y)]
            box = [max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)]
            if box[0] < box[2] and box[1] < box[3]:
                boxes.append(box)
    except (ElementTree.ParseError, ValueError, OverflowError, LookupError) as error:
        raise ValueError(f"{path}: the boxes cannot be read ({error})") from error
    return boxes


def _annotation(folder: Path | None, synset: str, image_id: str) -> Path | None:
    if folder is None:
        return None
    places = (folder / f"{image_id}.xml", folder / synset / f"{image_id}.xml")
    return next((place for place in places if place.is_file()), None)


def _read(root: Path, path: Path, boxes_in: Path | None, synset: str) -> tuple[dict, bool, str]:
    """The columns of an image's row, whether it has an annotation, and the SHA-256 of both files."""
    pixels = path.read_bytes()
    width, height = open_image(pixels, path, decode=False).size
    file = _annotation(boxes_in, synset, path.stem)
    content = b"" if file is None else file.read_bytes()
    facts = {
        "image_id": path.stem,
        "boxes": [] if file is None else _boxes(content, file, synset, width, height),
        "width": width,
        "height": height,
        "file": path.relative_to(root).as_posix(),
        "sha256": hashlib.sha256(pixels).hexdigest(),
        "mask_sha256": "",
        "difficult": [],
    }
    return facts, file is not None, "".join(hashlib.sha256(part).hexdigest() for part in (pixels, content))


def _class_names(root: Path, synsets: Mapping[str, object]) -> dict[str, str]:
    mapping = _find(root, "mapping")
    words = {synset: synset for synset in synsets} if mapping is None else _words(mapping)
    return dict(sorted(words.items()))


def build_index(root: Path, *, train: int, test: int | None, held_out: float, seed: int) -> Index:
    """Read and check ILSVRC 2012 at ``root``.

    Args:
        root: the folder with ``train`` and ``val``, and the boxes in ``Annotations/CLS-LOC``; or Kaggle's archive, unpacked.
            See the module for other layouts.
        train: images per class from ``train``, chosen by a hash. Without an XML file, an image's box is the whole image.
        test: images per class from ``val``; ``None``: all. An image without a box of its class is left out with a warning.
        held_out: fraction, in [0,1), of the training images that becomes the split ``held_out``.
        seed: decides which images are chosen and which are held out.

    Raises:
        ValueError: a file or folder is missing or malformed, or the boxes contradict the classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; it must hold ImageNet's train and val")
    training, validation = _by_folder(_needed(root, "train")), _validation(root)
    names = _class_names(root, training)
    for split, images in (("train", training), ("val", validation)):
        if unknown := sorted(images.keys() - names.keys()):
            source = _find(root, "mapping") or _find(root, "train")
            raise ValueError(
                f"{root}: the synset {unknown[0]} of {split} is not in {source} ({len(unknown)} such synsets)"
            )
    targets = {synset: target for target, synset in enumerate(names)}

    rows: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": [], "test": []}
    digests: list[tuple[str, str, str, str]] = []
    contradicted: list[str] = []
    boxless = 0
    splits = (("train", training, train, "train boxes"), ("test", validation, test, "val boxes"))
    for split, images, limit, boxes in splits:
        boxes_in = _find(root, boxes)
        for synset in sorted(images):
            for path in _chosen(images[synset], limit, seed):
                facts, annotated, sha256 = _read(root, path, boxes_in, synset)
                if not facts["boxes"] and split == "train":
                    facts["boxes"] = [[0, 0, facts["width"], facts["height"]]]
                elif not facts["boxes"]:
                    boxless += 1
                    contradicted += [path.stem] if annotated else []
                    continue
                rows[split].append({"class_name": names[synset], "target": targets[synset], **facts})
                digests.append((split, path.stem, synset, sha256))
    ids = [row["image_id"] for split_rows in rows.values() for row in split_rows]
    if len(set(ids)) < len(ids):
        twice = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise ValueError(f"{root}: two images have the name {twice!r}; give every image a name of its own")
    if len(contradicted) > len(rows["test"]):
        raise ValueError(
            f"{root}: {len(contradicted)} images of val have boxes, but none of their class, first {contradicted[0]}; check "
            "that the synsets beside the ground truth are in the devkit's order"
        )
    for split, folder in (("train", "train"), ("test", "val")):
        if not rows[split]:
            raise ValueError(f"{root}: {folder} has no image{' with a box' if split == 'test' else ''}")
    if boxless:
        log.warning("%s: %d images of val have no box of their class and are left out", root, boxless)
    aside = set_aside([row["image_id"] for row in rows["train"]], held_out, seed)
    rows["held_out"] = [row for row in rows["train"] if row["image_id"] in aside]
    rows["train"] = [row for row in rows["train"] if row["image_id"] not in aside]
    digest = hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest()
    return Index(tuple(names.values()), digest, as_table(rows))


class ImageNet(DataSource):
    """ILSVRC 2012 from a folder of the user."""

    watched: ClassVar[bool] = False

    source: Literal["imagenet"] = Field("imagenet", description="the kind of data set")
    root: str | None = Field(
        None,
        description="the folder that holds ImageNet's `train` and `val`. This key is required; docs/real-thing.md shows the "
        "layout",
    )
    train_per_class: Positive = Field(
        10,
        description="images of each class from `train`, chosen by a hash of their names. Feature statistics and guidance use "
        "them",
    )
    test_per_class: Positive | None = Field(None, description="images of each class from `val`; `null`: all")

    @property
    def folder(self) -> str | None:
        """``root``."""
        return self.root

    def check(self) -> None:
        """Check that there is a root, and that images have one class."""
        if not self.root:
            raise ValueError("root: give the folder that holds ImageNet's train and val")
        if self.multilabel:
            raise ValueError("multilabel: ImageNet has one class per image; set it to false")

    def test_images(self, root: Path) -> int:
        """The number for 1000 classes with 50 images each. With a smaller set, shards are smaller or empty."""
        return 1000 * (self.test_per_class or 50)

    def count(self, root: Path, images: Mapping[str, int]) -> Counts:
        """The numbers of the config, for 1000 classes."""
        train, test = (Split(number, number) for number in (1000 * self.train_per_class, self.test_images(root)))
        return Counts(train, test, 1000, "from data.train_per_class and data.test_per_class, for 1000 classes")

    def build_index(self, root: Path, seed: int) -> Index:
        """See :func:`build_index`."""
        return build_index(
            root, train=self.train_per_class, test=self.test_per_class, held_out=self.held_out, seed=seed
        )
