"""The built-in data set: striped shapes on photographs, written in VOC layout with boxes and masks.

The outline and the direction of the stripes show the class. In part of the training images, the background is a photograph that
belongs to the class. In the test images the background is random. So it is known what a network may learn instead of the
object. The photographs come with scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree

import numpy as np
import skimage
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from ibsgl.data.index import Index
from ibsgl.data.sources.base import Counts, DataSource, Split
from ibsgl.data.sources.voc import build_index
from ibsgl.randomness import derive_seed
from ibsgl.settings import LARGEST, Positive


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The star has ten equal parts. In one part, it is left of the edge from a tip (radius 1) to a notch (radius 0.45).
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + tenth) % (2 * tenth) - tenth)
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    notch_x, notch_y = 0.45 * math.cos(tenth), 0.45 * math.sin(tenth)
    return (notch_x - 1) * y - notch_y * (x - 1) >= 0


# Outlines as functions of u (to the right) and v (down), both in [-1, 1]. The order is alphabetical, as in the index.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.4) & (np.maximum(abs(u), abs(v)) <= 1),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "disk": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    "star": _star,
    "triangle": lambda u, v: (abs(u) <= (v + 1) / 2) & (v <= 1),
}
CLASS_NAMES = tuple(OUTLINES)

# Photograph k is the background of class k. The last two belong to no class.
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
    # Read by path, because skimage.data would download a missing file, and this must work without a network.
    folder = Path(skimage.__file__).parent / "data"
    images = {}
    for name, file in PHOTOGRAPHS.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: scikit-image ships this photograph; reinstall scikit-image")
        images[name] = Image.open(folder / file).convert("RGB")
    return images


def _background(photograph: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of ``photograph`` with random flip and brightness, (size,size,3) in [0,1]."""
    side = rng.uniform(0.25, 1) * min(photograph.size)
    left, top = rng.random(2) * (np.array(photograph.size) - side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float64) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.clip(pixels * rng.uniform(0.7, 1.3), 0, 1)


def _draw(
    split: str, index: int, *, seed: int, size: int, background_correlation: float, photographs: dict[str, Image.Image]
) -> tuple[np.ndarray, np.ndarray, int, str]:
    """Image (size,size,3) uint8, mask (size,size) bool, class and photograph number ``index`` of ``split``."""
    rng = np.random.default_rng(derive_seed(seed, "shapes", split, index))
    target = index % len(CLASS_NAMES)
    follow, any_photograph = rng.random() < background_correlation, rng.integers(len(PHOTOGRAPHS))
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
    """VOC's XML. The name of the background's photograph is under source/image."""
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
    """VOC's 256 mask colours in one list. Red, green and blue get the bits of the index in turn, as their highest bits."""
    bits = [[index >> (3 * step + channel) & 1 for step in range(8)] for index in range(256) for channel in range(3)]
    return [sum(bit << (7 - step) for step, bit in enumerate(row)) for row in bits]


def generate(
    root: Path,
    *,
    seed: int,
    trainval: int = 960,
    test: int = 96,
    further: int = 0,
    size: int = 96,
    background_correlation: float = 0.5,
    progress: bool = True,
) -> None:
    """Write the data set in VOC layout to the folder ``root``. The split lists are written last.

    Every image shows one object, whose side is 30–50 % of the image's side. Classes come in turn. An image depends only on
    ``seed``, the split and its number. ``SegmentationClass`` has the index of the class plus one.

    Args:
        root: created if it is missing. Images and lists of an earlier set are overwritten.
        seed: root seed.
        trainval, test: numbers of images.
        further: number of images like the test images, on which only the accuracy is measured.
        size: side of the images in pixels.
        background_correlation: fraction of the ``trainval`` images whose photograph belongs to their class. The other images,
            and all ``test`` and ``further`` images, have one of the eight photographs at random.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ValueError: a count or ``size`` is too small, ``background_correlation`` is outside [0,1], or ``root`` has another data
            set.
    """
    least_values = (("trainval", trainval, 1), ("test", test, 1), ("further", further, 0), ("size", size, 16))
    for name, value, least in least_values:
        if value < least:
            raise ValueError(f"shapes: {name} must be at least {least}, not {value}")
    if not 0 <= background_correlation <= 1:
        raise ValueError(f"shapes: background_correlation must lie in [0, 1], not {background_correlation}")
    root = Path(root)
    foreign = next((path for path in root.glob("Annotations/*") if not path.name.startswith(_PREFIX)), None)
    if foreign is not None:
        raise ValueError(f"{root} holds another data set ({foreign.name}); give the shapes a folder of their own")
    photographs, palette = _photographs(), _palette()
    counts = {"trainval": trainval, "test": test} | ({"further": further} if further else {})
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in ("trainval", "test", "further")}
    for path in lists.values():
        path.unlink(missing_ok=True)

    ids: dict[str, list[str]] = {split: [f"{_PREFIX}{split}_{i:05d}" for i in range(n)] for split, n in counts.items()}
    work = [(split, index, image_id) for split in counts for index, image_id in enumerate(ids[split])]
    for split, index, image_id in tqdm(work, desc="shapes", unit="image", disable=None if progress else True):
        image, mask, target, photograph = _draw(
            split, index, seed=seed, size=size, background_correlation=background_correlation, photographs=photographs
        )
        # With half the colour resolution, JPEG would blur the stripes.
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
        labels = Image.fromarray(mask.astype(np.uint8) * (target + 1))
        labels.putpalette(palette)
        labels.save(root / "SegmentationClass" / f"{image_id}.png")
        annotation = ElementTree.ElementTree(_annotation(image_id, mask, target, photograph))
        annotation.write(root / "Annotations" / f"{image_id}.xml", encoding="unicode")
    for split in counts:
        lists[split].write_text("".join(f"{image_id}\n" for image_id in ids[split]))


class Shapes(DataSource):
    """The built-in data set, generated on this machine."""

    generated: ClassVar[bool] = True
    watched: ClassVar[bool] = False
    place_keys: ClassVar[frozenset[str]] = frozenset(
        {"multilabel", "trainval", "test", "size", "background_correlation"}
    )

    source: Literal["shapes"] = Field("shapes", description="the kind of data set")
    trainval: Positive = Field(960, description="number of generated training images")
    test: Positive = Field(96, description="number of generated test images")
    further: int = Field(
        250,
        ge=0,
        le=LARGEST,
        description="number of generated images, like the test images, on which only the accuracy is measured: on 96 images "
        "a change of one point cannot be seen",
    )
    size: int = Field(96, ge=32, le=4096, description="side of the images in pixels")
    background_correlation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the training images whose background photograph belongs to the class. In test images the "
        "background is random. With 0.9 networks learn only the background",
    )

    def test_images(self, root: Path) -> int:
        """``test``."""
        return self.test

    def count(self, root: Path, images: Mapping[str, int]) -> Counts:
        """The numbers of the config, with one class per image."""
        train, test, further = (Split(number, number) for number in (self.trainval, self.test, self.further))
        return Counts(train, test, len(CLASS_NAMES), "from the config", further)

    def generate(self, root: Path, seed: int) -> None:
        """See :func:`generate`."""
        generate(
            root,
            seed=seed,
            trainval=self.trainval,
            test=self.test,
            further=self.further,
            size=self.size,
            background_correlation=self.background_correlation,
        )

    def build_index(self, root: Path, seed: int) -> Index:
        """The index of a folder in VOC layout; see :func:`ibsgl.data.sources.voc.build_index`."""
        lists = {"train": "trainval", "test": "test"} | ({"further": "further"} if self.further else {})
        return build_index(root, splits=lists, held_out=self.held_out, seed=seed)
