"""Any folder in PASCAL VOC layout as one table, with a row for each image and class that it shows.

The folder has ``Annotations/*.xml``, ``JPEGImages``, ``ImageSets/Main/*.txt`` and sometimes ``SegmentationClass`` (Everingham
et al. 2010). VOC's boxes start at 1 and include their last pixel. In the index they are 0-based and half-open.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

from pydantic import Field

from ibsgl.data.download import Download
from ibsgl.data.image_files import open_image
from ibsgl.data.index import SPLITS, Index, as_table, mask_path, set_aside
from ibsgl.data.sources.base import Counts, DataSource, Split
from ibsgl.files import named
from ibsgl.settings import Settings

log = logging.getLogger(__name__)

# (image, class) pairs of the lists of PASCAL VOC 2007, by list and number of images. "drop": the images with the label 1 in
# ImageSets/Main/<class>_<list>.txt, summed over the twenty classes. "keep": those with the label 1 or 0 (only difficult
# objects). For trainval, "drop" is the "img" column of Table 1 of the development kit's documentation
# (host.robots.ox.ac.uk/pascal/VOC/voc2007/htmldoc).
VOC2007_PAIRS = {
    ("trainval", 5011): {"keep": 7913, "drop": 7306},
    ("test", 4952): {"keep": 7632, "drop": 7013},
}
# The mean of VOC 2007, for another multi-label set that does not exist yet.
PAIRS_PER_IMAGE = {
    difficult: sum(pairs[difficult] for pairs in VOC2007_PAIRS.values()) / sum(images for _, images in VOC2007_PAIRS)
    for difficult in ("keep", "drop")
}
# The number of classes of a data set that does not exist yet, if the config does not name them. It hardly changes a plan.
CLASSES = 20
# EXIF's tag for the orientation, and its values. Only with the quarter turns width and height change places.
_ORIENTATION, _OTHER_TURNS, _QUARTER_TURNS = 0x0112, (2, 3, 4), (5, 6, 7, 8)
_THREADS = 4
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def image_path(root: Path, image_id: str) -> Path:
    """The image's file in ``JPEGImages`` (.jpg, .jpeg or .png); if there is none, the path of a .jpg."""
    candidates = [Path(root) / "JPEGImages" / f"{image_id}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


@dataclass
class _Findings:
    """Errors and warnings about the files. :meth:`report` logs each kind of warning once, and raises if there are errors."""

    errors: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: _Findings) -> None:
        self.errors += other.errors
        for warning, places in other.warnings.items():
            self.warnings[warning] += places

    def report(self, root: Path) -> None:
        for warning, places in self.warnings.items():
            log.warning("%s: %s (%d in all, first %s)", root, warning, len(places), places[0])
        if self.errors:
            first = "\n".join(f"  {error}" for error in self.errors[:5])
            more = f"\n  … and {len(self.errors) - 5} more" if len(self.errors) > 5 else ""
            raise ValueError(f"{root}: {len(self.errors)} error(s) in the data set\n{first}{more}")


def _listed(root: Path, name: str) -> list[str]:
    """The image ids of ``ImageSets/Main/<name>.txt``, in order."""
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        names = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))[:25]) or "none"
        raise ValueError(f"{path}: no such split list; lists in that folder: {names}")
    with named(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path}: the split list is empty")
    outside = [image_id for image_id in ids if PurePosixPath(image_id).is_absolute() or ".." in image_id.split("/")]
    if outside:
        raise ValueError(f"{path}: {outside[0]!r} is outside the folder JPEGImages; list the names of images in it")
    if odd := [image_id for image_id in ids if any(ord(letter) < 32 for letter in image_id)]:
        raise ValueError(f"{path}: {odd[0]!r} is no name of an image")
    repeated = [image_id for image_id, times in Counter(ids).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: {repeated[0]!r} is listed more than once ({len(repeated)} such images)")
    return ids


def shown_classes(root: Path, name: str, difficult: Literal["keep", "drop"] = "keep") -> dict[str, set[str]]:
    """Class names by image id, for every image of the list ``name`` that shows an object.

    Only the annotations are read, without the checks of :func:`build_index`.
    """
    shown = {}
    for image_id in _listed(Path(root), name):
        file = Path(root) / "Annotations" / f"{image_id}.xml"
        with named(file):
            annotation = ElementTree.parse(file)
        shown[image_id] = {
            (item.findtext("name") or "").strip()
            for item in annotation.iterfind("object")
            if difficult == "keep" or (item.findtext("difficult") or "0").strip() != "1"
        }
    return {image_id: classes for image_id, classes in shown.items() if classes}


def _box(item: ElementTree.Element, width: int, height: int) -> tuple[list[int], bool]:
    """[x0, y0, x1, y1], and whether a coordinate was 0. ``ValueError`` if the box is wrong."""
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("it has no bndbox")
    corner = {}
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = (bounds.findtext(key) or "").strip()
        if not text:
            raise ValueError(f"its bndbox has no {key}")
        try:
            # VOC has a few coordinates with decimals.
            corner[key] = round(float(text))
        except (ValueError, OverflowError):
            raise ValueError(f"{key} is {text!r}, not a number of pixels") from None
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if corner[low] > corner[high]:
            raise ValueError(f"{low} {corner[low]} is greater than {high} {corner[high]}")
    from_zero = corner["xmin"] == 0 or corner["ymin"] == 0
    x0, y0 = max(corner["xmin"], 1) - 1, max(corner["ymin"], 1) - 1
    x1, y1 = corner["xmax"], corner["ymax"]
    if min(corner.values()) < 0 or x1 <= x0 or y1 <= y0 or x1 > width or y1 > height:
        written = ", ".join(f"{key} {value}" for key, value in corner.items())
        raise ValueError(f"its box ({written}) reaches outside the image of {width}×{height} pixels")
    return [x0, y0, x1, y1], from_zero


def stated_size(annotation: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height in the annotation; ``None`` if there are none (some tools write 0)."""
    try:
        size = int(annotation.findtext("size/width", "0")), int(annotation.findtext("size/height", "0"))
    except ValueError:
        return None
    return size if all(size) else None


def _objects(
    annotation: ElementTree.Element, name: str, width: int, height: int, findings: _Findings
) -> list[tuple[str, bool, list[int]]]:
    """(class name, difficult, box) of every object. Errors and warnings are added to ``findings``."""
    objects = []
    for number, item in enumerate(annotation.findall("object"), 1):
        class_name = (item.findtext("name") or "").strip()
        place = f"{name}: object {number} ({class_name or 'without a name'})"
        try:
            if not class_name:
                raise ValueError("it has no name, and so no class")
            box, from_zero = _box(item, width, height)
        except ValueError as error:
            findings.errors.append(f"{place}: {error}")
            continue
        if from_zero:
            findings.warnings["VOC boxes start at 1; a coordinate of 0 is taken as 1"].append(place)
        objects.append((class_name, (item.findtext("difficult") or "0").strip() == "1", box))
    return objects


def _read(root: Path, image_id: str, findings: _Findings) -> dict | None:
    """Size, objects and digests of one image; ``None`` after an error."""
    path, name = root / "Annotations" / f"{image_id}.xml", f"Annotations/{image_id}.xml"
    picture = image_path(root, image_id)
    for file in (path, picture):
        if not file.is_file():
            findings.errors.append(f"{file.relative_to(root)}: no such file, but a split list names {image_id!r}")
            return None
    content, pixels = path.read_bytes(), picture.read_bytes()
    mask = mask_path(root, image_id)
    has_mask = mask.is_file()
    parts = (content, pixels, mask.read_bytes() if has_mask else b"")
    sha256 = [hashlib.sha256(part).hexdigest() for part in parts]
    try:
        annotation = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # An unknown encoding is a ValueError or a LookupError.
        findings.errors.append(f"{name}: malformed XML ({error})")
        return None
    if annotation.tag != "annotation":
        findings.errors.append(f"{name}: it is no annotation; its first tag is {annotation.tag!r}")
        return None
    shown = picture.relative_to(root).as_posix()
    try:
        # All pixels: a truncated file would stop the run only when its turn comes.
        image = open_image(pixels, shown)
    except ValueError as error:
        findings.errors.append(str(error))
        return None
    (width, height), mode, turned = image.size, image.mode, image.getexif().get(_ORIENTATION, 1)
    if mode in ("F", "I"):
        kind = "floating-point numbers" if mode == "F" else "32-bit integers"
        findings.errors.append(f"{shown}: its pixels are {kind}, whose range is unknown; save it with 8 or 16 bits")
        return None
    stated = stated_size(annotation)
    if stated not in (None, (width, height)):
        if stated == (height, width):
            findings.errors.append(
                f"{name}: the size is {stated[0]}×{stated[1]} but the file's is {width}×{height}; if the image has an EXIF tag "
                "for its rotation, rotate the pixels, because the tag is ignored; otherwise correct the size"
            )
            return None
        findings.warnings["the annotation's size differs from the file's size, which is used"].append(name)
    # Where width and height differ, the annotation's size has shown that the boxes are those of the pixels as they are.
    if turned in _QUARTER_TURNS and (width == height or stated is None):
        findings.errors.append(
            f"{shown}: an EXIF tag turns the image, and it is unknown whether the boxes follow it; turn the pixels and remove "
            "the tag"
        )
        return None
    if turned in _OTHER_TURNS:
        findings.warnings["an EXIF tag mirrors the image or turns it by 180°; it is not followed"].append(shown)
    objects = _objects(annotation, name, width, height, findings)
    facts = {"width": width, "height": height, "file": shown, "sha256": sha256[1]}
    return facts | {"mask_sha256": sha256[2] if has_mask else "", "objects": objects, "content": "".join(sha256)}


def _known_classes(
    records: Mapping[str, dict], class_names: Sequence[str] | None, findings: _Findings
) -> tuple[str, ...]:
    """``class_names``, or without them the names in the annotations, sorted. A class that is not listed is an error."""
    if class_names is None:
        return tuple(sorted({item[0] for record in records.values() for item in record["objects"]}))
    for image_id, record in records.items():
        for unknown in sorted({item[0] for item in record["objects"]} - set(class_names)):
            findings.errors.append(
                f"Annotations/{image_id}.xml: class {unknown!r} is not among the class names "
                f"({', '.join(class_names)}); add it there"
            )
    return tuple(class_names)


def build_index(
    root: Path,
    *,
    splits: Mapping[str, str],
    held_out: float,
    seed: int,
    class_names: Sequence[str] | None = None,
    difficult: Literal["keep", "drop"] = "keep",
) -> Index:
    """Read and check every annotation of the data set at ``root``.

    Args:
        root: the folder with ``Annotations``, ``JPEGImages`` and ``ImageSets``.
        splits: the lists in ``ImageSets/Main``, such as ``{"train": "trainval", "test": "test"}``. ``further`` is a list of
            images that only the accuracy is measured on.
        held_out: fraction, in [0,1), of the training images that becomes the split ``held_out``.
        seed: decides which images are held out. The choice for an image depends on its id.
        class_names: the K classes in order. ``None``: every name in the annotations, sorted.
        difficult: ``"keep"``: objects marked difficult count. ``"drop"``: they do not count, and an image's classes with only
            difficult objects are skipped.

    Returns:
        the index. An image's size is that of its file. If the annotation has another size, a warning is logged.

    Raises:
        ValueError: an argument is wrong, a folder or list is missing, or the files have errors. The message then has the first
            five errors and their number.
    """
    root = Path(root)
    if not set(splits) <= {"train", "test", "further"} or not splits:
        raise ValueError(
            f"splits: the keys must be train, test and further, not {', '.join(map(str, splits)) or 'none'}"
        )
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must lie in [0, 1), not {held_out}")
    if difficult not in ("keep", "drop"):
        raise ValueError(f"difficult must be 'keep' or 'drop', not {difficult!r}")
    if class_names is not None and (not class_names or len(set(class_names)) < len(class_names)):
        raise ValueError(f"class_names must be one or more names, each once, not {list(class_names)}")
    for folder in (root, root / "Annotations", root / "JPEGImages", root / "ImageSets" / "Main"):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; a data set in VOC layout needs it")

    listed = {split: _listed(root, splits[split]) for split in SPLITS if split in splits}
    shared = sorted(set(listed.get("train", ())) & set(listed.get("test", ())))
    if shared:
        raise ValueError(f"{root}: {shared[0]!r} is listed for training and for test ({len(shared)} such images)")

    findings, records = _Findings(), {}
    # An image may be in several lists.
    ids = list(dict.fromkeys(image_id for ids in listed.values() for image_id in ids))
    own = [_Findings() for _ in ids]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(_read, [root] * len(ids), ids, own))
    for image_id, record, found in zip(ids, read, own, strict=True):
        findings.add(found)
        if record is not None:
            records[image_id] = record
    names = _known_classes(records, class_names, findings)
    findings.report(root)
    members = sorted((split, image_id) for split, ids in listed.items() for image_id in ids)
    content = json.dumps([(split, image_id, records[image_id]["content"]) for split, image_id in members])
    digest = hashlib.sha256(content.encode()).hexdigest()

    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for split, ids in listed.items():
        shown: dict[str, dict[int, list[list[int]]]] = {}
        for image_id in ids:
            boxes: dict[int, list[list[int]]] = defaultdict(list)
            plain_targets: set[int] = set()
            difficult_targets: set[int] = set()
            for class_name, is_difficult, box in records[image_id]["objects"]:
                target = names.index(class_name)
                (difficult_targets if is_difficult else plain_targets).add(target)
                if difficult == "keep" or not is_difficult:
                    boxes[target].append(box)
            if boxes:
                shown[image_id] = boxes
            records[image_id]["difficult"] = sorted(difficult_targets - plain_targets)
        if not shown:
            raise ValueError(f"{root}: no image of the list {splits[split]!r} has an object")
        if len(shown) < len(ids):
            log.warning(
                "%s: %d images of %s show no object and are left out", root, len(ids) - len(shown), splits[split]
            )
        aside = set_aside(list(shown), held_out, seed) if split == "train" else set()
        for image_id, boxes in shown.items():
            facts = {
                key: records[image_id][key] for key in ("width", "height", "file", "sha256", "mask_sha256", "difficult")
            }
            rows["held_out" if image_id in aside else split].extend(
                {"image_id": image_id, "class_name": names[k], "target": k, "boxes": boxes[k], **facts}
                for k in sorted(boxes)
            )
    return Index(names, digest, as_table(rows))


class Lists(Settings):
    """Names of the lists in ``ImageSets/Main``, without ``.txt``."""

    train: str = Field("trainval", description="the list in `ImageSets/Main` to train on, without `.txt`")
    test: str = Field("test", description="the list to explain and score")


class VOC(DataSource):
    """A folder in PASCAL VOC layout, which may be downloaded."""

    source: Literal["voc"] = Field("voc", description="the kind of data set")
    root: str | None = Field(
        None,
        description="the folder that holds `JPEGImages`, `Annotations` and `ImageSets`. This key is required",
    )
    splits: Lists = Lists()
    classes: list[str] | None = Field(
        None,
        min_length=2,
        description="the classes in the order of the logits; `null`: every name in the annotations, sorted. An object of a "
        "class that is not listed is an error",
    )
    difficult: Literal["keep", "drop"] = Field(
        "keep", description="whether objects marked `difficult` count or are left out"
    )
    download: Download | None = Field(
        None, description="where the data set is downloaded from if there is no folder `data.root`"
    )

    @property
    def folder(self) -> str | None:
        """``root``."""
        return self.root

    @property
    def archives(self) -> Download | None:
        """``download``."""
        return self.download

    @property
    def list_settings(self) -> dict[str, Any]:
        """The settings of the config."""
        return {"split": self.splits.test, "difficult": self.difficult}

    def check(self) -> None:
        """Check that there is a root, and for a download the number of images of each list."""
        if not self.root:
            raise ValueError("root: give the folder that holds JPEGImages, Annotations and ImageSets")
        if "{" in self.root or "}" in self.root:
            raise ValueError(f"root: Snakemake reads braces as wildcards; rename the folder {self.root!r}")
        if self.classes and (repeated := [name for name, times in Counter(self.classes).items() if times > 1]):
            raise ValueError(f"classes: {repeated[0]!r} is listed more than once")
        if self.download is None:
            return
        for name in (self.splits.train, self.splits.test):
            if name not in self.download.images:
                raise ValueError(f"download.images: give the number of images of the list {name!r}")

    def test_images(self, root: Path) -> int:
        """The length of the test list. Before a download it is the number in the config."""
        path = root / "ImageSets" / "Main" / f"{self.splits.test}.txt"
        if not path.is_file() and self.download:
            return self.download.images[self.splits.test]
        # 1 for a list that is missing or empty. Reading the index then raises an error.
        return max(1, sum(map(bool, map(bytes.strip, path.read_bytes().splitlines()))) if path.is_file() else 1)

    def count(self, root: Path, images: Mapping[str, int]) -> Counts:
        """The numbers in the folder. Before a download, the number of pairs is that of VOC 2007, or an estimate."""
        lists = (self.splits.train, self.splits.test)
        if (root / "ImageSets").is_dir():
            shown = [shown_classes(root, name, self.difficult) for name in lists]
            train, test = (Split(len(classes), sum(map(len, classes.values()))) for classes in shown)
            names = self.classes or set().union(*(names for classes in shown for names in classes.values()))
            return Counts(train, test, len(names), f"counted in {root}")
        images = images or (self.download.images if self.download else {})
        if missing := [name for name in lists if name not in images]:
            raise ValueError(
                f"data.root: there is no folder {self.root!r}; give the number of images with "
                + " ".join(f"--images {name}=…" for name in missing)
            )
        train, test = (Split(images[name], self._pairs(name, images[name])) for name in lists)
        known = self.multilabel and all((name, images[name]) in VOC2007_PAIRS for name in lists)
        origin = f"the data is missing; pairs {'as in the lists of VOC 2007' if known else 'estimated'}"
        return Counts(train, test, len(self.classes or ()) or CLASSES, origin)

    def _pairs(self, name: str, images: int) -> int:
        """The number of (image, class) pairs of a list that does not exist yet."""
        if not self.multilabel:
            return images
        known = VOC2007_PAIRS.get((name, images))
        return known[self.difficult] if known else round(PAIRS_PER_IMAGE[self.difficult] * images)

    def build_index(self, root: Path, seed: int) -> Index:
        """The index of :func:`build_index`."""
        return build_index(
            root,
            splits=self.splits.model_dump(),
            held_out=self.held_out,
            seed=seed,
            class_names=self.classes,
            difficult=self.difficult,
        )
