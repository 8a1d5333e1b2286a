"""The built-in data set: striped shapes on photographs, written in VOC layout with boxes and masks.

Outline and stripe orientation tell the class. In part of the training images the background photograph goes with the
class and at test it never does: the aeroplane-and-sky problem with known truth. The photographs ship with scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import skimage
from PIL import Image
from tqdm import tqdm

from ibsgl.randomness import derive_seed


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Folded by its symmetry, the star is one tenth, left of the edge from a tip (radius 1) to a notch (radius 0.45).
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + tenth) % (2 * tenth) - tenth)
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    notch_x, notch_y = 0.45 * math.cos(tenth), 0.45 * math.sin(tenth)
    return (notch_x - 1) * y - notch_y * (x - 1) >= 0


# Outlines on u to the right and v down, both in [-1, 1], in alphabetical order: the reader's own order of class names.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.4) & (np.maximum(abs(u), abs(v)) <= 1),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "disk": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    "star": _star,
    "triangle": lambda u, v: (abs(u) <= (v + 1) / 2) & (v <= 1),
}
CLASS_NAMES = tuple(OUTLINES)

# Class k is tied to photograph k; the last two belong to no class.
PHOTOGRAPHS = {
    "brick": "brick.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
}
_PREFIX = "shapes_"


def _photographs() -> dict[str, Image.Image]:
    # By path: skimage.data would fetch a missing file from the network, and this must work without one.
    folder = Path(skimage.__file__).parent / "data"
    images = {}
    for name, file in PHOTOGRAPHS.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: scikit-image ships this photograph; reinstall scikit-image")
        images[name] = Image.open(folder / file).convert("RGB")
    return images


def _background(photograph: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of ``photograph``, flipped and brightened at random, as (size,size,3) in [0,1]."""
    side = rng.uniform(0.25, 1) * min(photograph.size)
    left, top = rng.random(2) * (np.array(photograph.size) - side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float64) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.clip(pixels * rng.uniform(0.7, 1.3), 0, 1)


def _draw(
    split: str, index: int, *, seed: int, size: int, tied: float, photographs: dict[str, Image.Image]
) -> tuple[np.ndarray, np.ndarray, int, str]:
    """Image (size,size,3) uint8, mask (size,size) bool, class and photograph number ``index`` of ``split``."""
    rng = np.random.default_rng(derive_seed(seed, "shapes", split, index))
    target = index % len(CLASS_NAMES)
    follow, any_photograph = rng.random() < tied, rng.integers(len(PHOTOGRAPHS))
    photograph = list(PHOTOGRAPHS)[target if follow and split == "trainval" else any_photograph]
    pixels = _background(photographs[photograph], size, rng)

    radius = size * rng.uniform(0.3, 0.5) / 2
    x0, y0 = rng.uniform(radius, size - radius, 2)
    y, x = np.mgrid[:size, :size] + 0.5
    mask = OUTLINES[CLASS_NAMES[target]]((x - x0) / radius, (y - y0) / radius)

    angle = math.pi * target / len(CLASS_NAMES)
    period = size * rng.uniform(0.05, 0.09)
    phase = rng.uniform(0, 2 * math.pi)
    wave = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period + phase)
    colour, contrast = rng.uniform(0.3, 0.7, 3), rng.uniform(0.2, 0.4, 3)
    stripes = np.clip(colour + contrast * np.clip(2 * wave, -1, 1)[..., None], 0, 1)
    pixels = np.where(mask[..., None], stripes, pixels)
    return np.rint(pixels * 255).astype(np.uint8), mask, target, photograph


def _annotation(image_id: str, mask: np.ndarray, target: int, photograph: str) -> ElementTree.Element:
    """VOC's XML; the photograph's name stands under source/image, so that the background's truth is known."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = {"xmin": columns[0] + 1, "ymin": rows[0] + 1, "xmax": columns[-1] + 1, "ymax": rows[-1] + 1}
    content = {
        "folder": "VOC2007",
        "filename": f"{image_id}.jpg",
        "source": {"database": "ibsgl shapes", "image": photograph},
        "size": {"width": mask.shape[1], "height": mask.shape[0], "depth": 3},
        "segmented": 1,
        "object": {"name": CLASS_NAMES[target], "pose": "Frontal", "truncated": 0, "difficult": 0, "bndbox": box},
    }

    def fill(parent: ElementTree.Element, entries: dict) -> ElementTree.Element:
        for tag, value in entries.items():
            child = ElementTree.SubElement(parent, tag)
            if isinstance(value, dict):
                fill(child, value)
            else:
                child.text = str(value)
        return parent

    root = fill(ElementTree.Element("annotation"), content)
    ElementTree.indent(root, "\t")
    return root


def _palette() -> list[int]:
    """VOC's 256 mask colours, flat: the bits of the index dealt out in turn to red, green and blue, highest first."""
    bits = [[index >> (3 * step + channel) & 1 for step in range(8)] for index in range(256) for channel in range(3)]
    return [sum(bit << (7 - step) for step, bit in enumerate(row)) for row in bits]


def generate(
    root: Path,
    *,
    seed: int,
    trainval: int = 960,
    test: int = 96,
    size: int = 96,
    tied: float = 0.5,
    progress: bool = True,
) -> None:
    """Write the data set under ``root`` (a folder in VOC layout, like ``…/VOC2007``); the split lists come last.

    Every image shows one object, its side 30–50 % of the image's, classes in turn, and depends on ``seed``, the split
    and its own number only. ``SegmentationClass`` holds the index of the class plus one.

    Args:
        root: made where it is missing; images and lists of an earlier set in it are overwritten.
        seed: root of every draw.
        trainval, test: numbers of images.
        size: side of the images in pixels.
        tied: fraction of the ``trainval`` images whose photograph is their class's own; the others, and every ``test``
            image, take any of the eight with equal chance.
        progress: show a bar on a terminal.

    Raises:
        ValueError: for a count or size below 1, ``tied`` outside [0,1], or a ``root`` that holds another data set.
    """
    for name, value, least in (("trainval", trainval, 1), ("test", test, 1), ("size", size, 16)):
        if value < least:
            raise ValueError(f"shapes: {name} must be at least {least}, not {value}")
    if not 0 <= tied <= 1:
        raise ValueError(f"shapes: tied must lie in [0, 1], not {tied}")
    root = Path(root)
    foreign = next((path for path in root.glob("Annotations/*") if not path.name.startswith(_PREFIX)), None)
    if foreign is not None:
        raise ValueError(f"{root} holds another data set ({foreign.name}); give the shapes a folder of their own")
    photographs, palette = _photographs(), _palette()
    counts = {"trainval": trainval, "test": test}
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in counts}
    for path in lists.values():
        path.unlink(missing_ok=True)

    ids: dict[str, list[str]] = {split: [f"{_PREFIX}{split}_{i:05d}" for i in range(n)] for split, n in counts.items()}
    work = [(split, index, image_id) for split in counts for index, image_id in enumerate(ids[split])]
    for split, index, image_id in tqdm(work, desc="shapes", unit="image", disable=None if progress else True):
        image, mask, target, photograph = _draw(split, index, seed=seed, size=size, tied=tied, photographs=photographs)
        # Full colour resolution: halved, it would smear the stripes.
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
        labels = Image.fromarray(mask.astype(np.uint8) * (target + 1))
        labels.putpalette(palette)
        labels.save(root / "SegmentationClass" / f"{image_id}.png")
        annotation = ElementTree.ElementTree(_annotation(image_id, mask, target, photograph))
        annotation.write(root / "Annotations" / f"{image_id}.xml", encoding="unicode")
    for split, path in lists.items():
        path.write_text("".join(f"{image_id}\n" for image_id in ids[split]))
