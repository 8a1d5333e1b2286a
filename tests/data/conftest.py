"""Hand-made folders in VOC layout."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write_image(
    root: Path,
    image_id: str,
    size: tuple[int, int],
    objects: Sequence[tuple],
    *,
    stated: tuple[int, int] | None = None,
    pixels: np.ndarray | None = None,
) -> None:
    """A PNG, so that pixels survive, and its annotation; an object is (name, (xmin, ymin, xmax, ymax)[, difficult])."""
    width, height = stated or size
    text = f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for name, box, *difficult in objects:
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        flag = f"<difficult>{difficult[0]}</difficult>" if difficult else ""
        text += f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox></object>"
    (root / "Annotations" / f"{image_id}.xml").write_text(text + "</annotation>")
    if pixels is None:
        pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.png")


def _write_list(root: Path, name: str, ids: Sequence[str]) -> None:
    (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


@pytest.fixture
def write_image() -> Callable[..., None]:
    return _write_image


@pytest.fixture
def write_list() -> Callable[..., None]:
    return _write_list


@pytest.fixture
def empty_voc(tmp_path) -> Path:
    """The folders, with nothing in them."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    return root


@pytest.fixture
def make_voc(empty_voc) -> Callable[..., Path]:
    """``make_voc({split: {id: (size, objects)}})`` → its root."""

    def make(splits: dict[str, dict[str, tuple]]) -> Path:
        for split, images in splits.items():
            _write_list(empty_voc, split, list(images))
            for image_id, (size, objects) in images.items():
                _write_image(empty_voc, image_id, size, objects)
        return empty_voc

    return make


@pytest.fixture
def small_voc(make_voc) -> Path:
    """Three training images and one test image, of cats and dogs, with several classes and boxes."""
    return make_voc(
        {
            "trainval": {
                "b": ((20, 10), [("dog", (1, 1, 20, 10))]),
                "a": ((8, 6), [("dog", (2, 3, 4, 5)), ("cat", (1, 1, 1, 1)), ("dog", (5, 1, 8, 6))]),
                "c": ((8, 8), [("cat", (3, 3, 6, 6), 1)]),
            },
            "test": {"d": ((8, 8), [("cat", (3, 3, 6, 6), 0), ("dog", (1, 1, 2, 2), 1)])},
        }
    )
