"""Any folder in PASCAL VOC layout as one table: a row for each image and class present in it.

Reads ``Annotations/*.xml``, ``JPEGImages``, ``SegmentationClass`` where it is there, and ``ImageSets/Main/*.txt``
(Everingham et al. 2010). VOC's boxes count from 1 and include their last pixel; here they are 0-based and half-open.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ibsgl.randomness import derive_seed

log = logging.getLogger(__name__)

SPLITS = ("train", "held_out", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "image_id": pa.string(),
        "class_name": pa.string(),
        "target": pa.int64(),
        "boxes": pa.list_(pa.list_(pa.int32())),
        "width": pa.int64(),
        "height": pa.int64(),
        "has_mask": pa.bool_(),
        "file": pa.string(),
        "difficult": pa.list_(pa.int64()),
    }
)


def image_path(root: Path, image_id: str) -> Path:
    """The image's file under ``JPEGImages`` (.jpg, .jpeg or .png); the .jpg's path where there is none."""
    candidates = [Path(root) / "JPEGImages" / f"{image_id}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def mask_path(root: Path, image_id: str) -> Path:
    """Where the image's class mask lies if it has one."""
    return Path(root) / "SegmentationClass" / f"{image_id}.png"


@dataclass(frozen=True, eq=False)
class Index:
    """What a data set holds, without its pixels.

    Attributes:
        class_names: the K names; a target is a position among them.
        digest: SHA-256 of the bytes of every annotation, image and mask in use and of the splits.
        root: the folder as it was given.
        table: one row per image and class present: ``split`` (train, held_out, test), ``image_id``, ``class_name``,
            ``target``, ``boxes`` (list of [x0, y0, x1, y1], 0-based and half-open), ``width`` and ``height`` of the
            image's file, all in its pixels, ``has_mask``, ``file`` (the image's path below the root), ``difficult`` (the
            targets of which the image shows objects marked difficult only). Splits in this order, images in the order of
            their list, classes by target.
    """

    class_names: tuple[str, ...]
    digest: str
    root: str
    table: pd.DataFrame

    def save(self, path: Path) -> None:
        """Write as Parquet; everything but the table goes into the schema's metadata."""
        table = pa.Table.from_pandas(self.table, schema=_SCHEMA, preserve_index=False)
        facts = {"class_names": self.class_names, "digest": self.digest, "root": self.root}
        table = table.replace_schema_metadata({"ibsgl": json.dumps(facts, ensure_ascii=False)})
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read what :meth:`save` wrote; ``ValueError`` if ``path`` is some other Parquet file, or an older index."""
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        if b"ibsgl" not in metadata or table.column_names != _SCHEMA.names:
            raise ValueError(f"{path} is not a data index; build it again")
        facts = json.loads(metadata[b"ibsgl"])
        lists = ["boxes", "difficult"]
        frame = table.drop_columns(lists).to_pandas()
        for name in lists:
            frame.insert(_SCHEMA.get_field_index(name), name, table[name].to_pylist())
        return cls(tuple(facts["class_names"]), facts["digest"], facts["root"], frame)


@dataclass
class _Findings:
    """What the reader has to say about the files: errors, which stop it at the end, and warnings, once a kind."""

    errors: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def report(self, root: Path) -> None:
        for what, where in self.warnings.items():
            log.warning("%s: %s (%d in all, first %s)", root, what, len(where), where[0])
        if self.errors:
            first = "\n".join(f"  {error}" for error in self.errors[:5])
            more = f"\n  … and {len(self.errors) - 5} more" if len(self.errors) > 5 else ""
            raise ValueError(f"{root}: {len(self.errors)} error(s) in the data set\n{first}{more}")


def as_table(rows: Mapping[str, Sequence[dict]]) -> pd.DataFrame:
    """:attr:`Index.table` from each split's rows, which lack the split alone."""
    return pd.DataFrame([{"split": split, **row} for split in SPLITS for row in rows[split]], columns=_SCHEMA.names)


def _listed(root: Path, name: str) -> list[str]:
    """The image ids of ``ImageSets/Main/<name>.txt``, in order."""
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))[:25]) or "none"
        raise ValueError(f"{path}: no such split list; lists in that folder: {there}")
    ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{path}: the split list is empty")
    repeated = [image_id for image_id, times in Counter(ids).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: {repeated[0]!r} is listed more than once ({len(repeated)} such images)")
    return ids


def shown_classes(root: Path, name: str, difficult: Literal["keep", "drop"] = "keep") -> dict[str, set[str]]:
    """Class names by image id for every image of the list ``name`` that shows any, from the annotations alone.

    Quick and trusting where :func:`build_index` checks every file.
    """
    shown = {}
    for image_id in _listed(Path(root), name):
        annotation = ElementTree.parse(Path(root) / "Annotations" / f"{image_id}.xml")
        shown[image_id] = {
            (item.findtext("name") or "").strip()
            for item in annotation.iterfind("object")
            if difficult == "keep" or (item.findtext("difficult") or "0").strip() != "1"
        }
    return {image_id: classes for image_id, classes in shown.items() if classes}


def _box(item: ElementTree.Element, width: int, height: int) -> tuple[list[int], bool]:
    """[x0, y0, x1, y1], and whether a coordinate of 0 was clamped; ``ValueError`` says what is wrong with the box."""
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("it has no bndbox")
    corner = {}
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = (bounds.findtext(key) or "").strip()
        if not text:
            raise ValueError(f"its bndbox has no {key}")
        try:
            corner[key] = round(float(text))  # VOC itself has a few coordinates with decimals.
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
    """Width and height as the annotation has them; ``None`` where it does not say (some tools write 0)."""
    try:
        size = int(annotation.findtext("size/width", "0")), int(annotation.findtext("size/height", "0"))
    except ValueError:
        return None
    return size if all(size) else None


def _objects(
    annotation: ElementTree.Element, name: str, width: int, height: int, findings: _Findings
) -> list[tuple[str, bool, list[int]]]:
    """(class name, difficult, box) of every object; what is wrong goes to ``findings``."""
    objects = []
    for number, item in enumerate(annotation.findall("object"), 1):
        class_name = (item.findtext("name") or "").strip()
        where = f"{name}: object {number} ({class_name or 'without a name'})"
        try:
            if not class_name:
                raise ValueError("it has no name, so no class")
            box, from_zero = _box(item, width, height)
        except ValueError as error:
            findings.errors.append(f"{where}: {error}")
            continue
        if from_zero:
            findings.warnings["VOC boxes start at 1; a coordinate of 0 is taken as 1"].append(where)
        objects.append((class_name, (item.findtext("difficult") or "0").strip() == "1", box))
    return objects


def _read(root: Path, image_id: str, findings: _Findings) -> dict | None:
    """Size, objects, mask and SHA-256 of one image; ``None`` after an error."""
    path, name = root / "Annotations" / f"{image_id}.xml", f"Annotations/{image_id}.xml"
    picture = image_path(root, image_id)
    for file in (path, picture):
        if not file.is_file():
            findings.errors.append(f"{file.parent.name}/{file.name}: no such file, but a split list names {image_id!r}")
            return None
    content, pixels = path.read_bytes(), picture.read_bytes()
    mask = mask_path(root, image_id)
    has_mask = mask.is_file()
    parts = (content, pixels, mask.read_bytes() if has_mask else b"")
    sha256 = "".join(hashlib.sha256(part).hexdigest() for part in parts)
    try:
        annotation = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # The last two: an unknown encoding.
        findings.errors.append(f"{name}: malformed XML ({error})")
        return None
    try:
        with Image.open(io.BytesIO(pixels)) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        reason = "not an image that can be read" if isinstance(error, OSError) else str(error)
        findings.errors.append(f"JPEGImages/{picture.name}: {reason}")
        return None
    stated = stated_size(annotation)
    if stated not in (None, (width, height)):
        if stated == (height, width):
            findings.errors.append(
                f"{name}: the size is {stated[0]}×{stated[1]} but the file's is {width}×{height}; if an EXIF tag turns "
                "the photograph, which is not read, turn the pixels themselves, otherwise correct the size"
            )
            return None
        findings.warnings["the annotation's size differs from the file's, which is taken"].append(name)
    objects = _objects(annotation, name, width, height, findings)
    facts = {"width": width, "height": height, "has_mask": has_mask, "file": f"JPEGImages/{picture.name}"}
    return facts | {"objects": objects, "sha256": sha256}


def set_aside(ids: Sequence[str], held_out: float, seed: int) -> set[str]:
    """The share ``held_out`` of the training images ``ids``; ``ValueError`` where that is no image, or all of them."""
    # By rank of a hash, so that neither the order of the list nor another image's fate decides on an image.
    ranked = sorted(ids, key=lambda image_id: (derive_seed(seed, "held_out", image_id), image_id))
    aside = set(ranked[: round(held_out * len(ids))])
    if held_out > 0 and not aside:
        raise ValueError(f"held_out: {held_out} of the {len(ids)} training images is not one image; raise it")
    if len(aside) == len(ids):
        raise ValueError(f"held_out: {held_out} of the {len(ids)} training images leaves none to train on")
    return aside


def _known_classes(
    records: Mapping[str, dict], class_names: Sequence[str] | None, findings: _Findings
) -> tuple[str, ...]:
    """``class_names``, or the annotations' own, sorted; an object of a class that is not listed is an error."""
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
        root: the folder that holds ``Annotations``, ``JPEGImages`` and ``ImageSets``.
        splits: the lists in ``ImageSets/Main`` to read, such as ``{"train": "trainval", "test": "test"}``.
        held_out: fraction of the train list's images in [0,1) to set aside as the split ``held_out``.
        seed: decides which; an image's place depends on its id only.
        class_names: the K classes in order; ``None``: every name in the annotations, sorted.
        difficult: ``"keep"`` counts objects marked difficult; ``"drop"`` leaves them out, and with them a class of
            which an image shows no other object.

    Raises:
        ValueError: for a bad argument, a missing folder or list, or with the first five faults found in the files and
            the number of all. An image's size is its file's; where the annotation says otherwise, a warning is logged.
    """
    root = Path(root)
    if not set(splits) <= {"train", "test"} or not splits:
        raise ValueError(f"splits: the keys are train and test, not {', '.join(map(str, splits)) or 'none'}")
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
    for image_id in (image_id for ids in listed.values() for image_id in ids):
        record = _read(root, image_id, findings)
        if record is not None:
            records[image_id] = record
    names = _known_classes(records, class_names, findings)
    findings.report(root)
    members = sorted((split, image_id) for split, ids in listed.items() for image_id in ids)
    content = json.dumps([(split, image_id, records[image_id]["sha256"]) for split, image_id in members])
    digest = hashlib.sha256(content.encode()).hexdigest()

    rows = {split: [] for split in SPLITS}
    for split, ids in listed.items():
        shown = {}
        for image_id in ids:
            boxes, plain, hard = defaultdict(list), set(), set()
            for class_name, is_difficult, box in records[image_id]["objects"]:
                target = names.index(class_name)
                (hard if is_difficult else plain).add(target)
                if difficult == "keep" or not is_difficult:
                    boxes[target].append(box)
            if boxes:
                shown[image_id] = boxes
            records[image_id]["difficult"] = sorted(hard - plain)
        if not shown:
            raise ValueError(f"{root}: no image of the list {splits[split]!r} has an object")
        if len(shown) < len(ids):
            log.warning(
                "%s: %d images of %s show no object and are left out", root, len(ids) - len(shown), splits[split]
            )
        aside = set_aside(list(shown), held_out, seed) if split == "train" else set()
        for image_id, boxes in shown.items():
            facts = {key: records[image_id][key] for key in ("width", "height", "has_mask", "file", "difficult")}
            rows["held_out" if image_id in aside else split].extend(
                {"image_id": image_id, "class_name": names[k], "target": k, "boxes": boxes[k], **facts}
                for k in sorted(boxes)
            )
    return Index(names, digest, root.as_posix(), as_table(rows))
