"""A stand-in for VOC 2007: generated pictures of the twenty classes in two archives of the very same layout."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLASSES = yaml.safe_load((Path(__file__).parents[2] / "config" / "voc2007.yaml").read_text())["data"]["classes"]
NAMES = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}


def _picture(rng: np.random.Generator, kinds: list[int]) -> tuple[np.ndarray, np.ndarray, list[tuple]]:
    """Pixels (H,W,3), mask (H,W) and objects (class, box, difficult, truncated): one disc of the class's colour each."""
    height, width = int(rng.integers(40, 60)), int(rng.integers(40, 60))
    pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    objects = []
    for number, kind in enumerate(kinds):
        radius = int(rng.integers(7, 14))
        cy, cx = int(rng.integers(4, height - 4)), int(rng.integers(4, width - 4))
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        pixels[disc] = np.random.default_rng(kind).integers(90, 255, 3)
        mask[disc] = kind + 1
        rows, columns = disc.any(1).nonzero()[0], disc.any(0).nonzero()[0]
        box = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
        cut = bool(rows[0] == 0 or columns[0] == 0 or rows[-1] == height - 1 or columns[-1] == width - 1)
        # Never the only object: in VOC no image is all difficult.
        objects.append((CLASSES[kind], box, number > 0 and rng.random() < 0.3, cut))
    return pixels, mask, objects


def _annotation(image_id: str, pixels: np.ndarray, objects: list[tuple], segmented: bool) -> str:
    height, width, _ = pixels.shape
    parts = [
        f"<annotation><folder>VOC2007</folder><filename>{image_id}.jpg</filename>",
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        f"<segmented>{int(segmented)}</segmented>",
    ]
    for name, (x0, y0, x1, y1), difficult, truncated in objects:
        parts.append(
            f"<object><name>{name}</name><pose>Unspecified</pose><truncated>{int(truncated)}</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    return "\n".join(parts) + "</annotation>\n"


def make_archives(folder: Path, images: dict[str, int], seed: int = 0) -> list[dict]:
    """The archives of ``images`` (list name → how many) in ``folder``; their entries for ``data.download.archives``.

    Every class is in both lists; images have one to three objects of one to three classes, every fourth a mask.
    """
    rng = np.random.default_rng(seed)
    entries, number = [], 0
    for split, count in images.items():
        root = folder / split / "VOCdevkit" / "VOC2007"
        for name in ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Main"):
            (root / name).mkdir(parents=True)
        ids = []
        for place in range(count):
            number += 1
            image_id = f"{number:06d}"
            kinds = [place % 20, *rng.integers(0, 20, int(rng.integers(0, 3))).tolist()]
            pixels, mask, objects = _picture(rng, kinds)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
            segmented = place % 4 == 0
            if segmented:
                picture = Image.fromarray(mask, mode="P")
                picture.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
                picture.save(root / "SegmentationClass" / f"{image_id}.png")
            (root / "Annotations" / f"{image_id}.xml").write_text(_annotation(image_id, pixels, objects, segmented))
            ids.append(image_id)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        path = folder / NAMES[split]
        with tarfile.open(path, "w") as archive:
            archive.add(folder / split / "VOCdevkit", "VOCdevkit")
        content = path.read_bytes()
        entries.append({"name": path.name, "md5": hashlib.md5(content).hexdigest(), "bytes": len(content)})
    return entries
