"""Images and regions of a data set as tensors with the network's input size.

Images of all shapes are resized to a square, as TorchRay does on VOC 2007. Boxes are resized in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ibsgl.data.image_files import open_image
from ibsgl.data.index import SPLITS, Index, mask_path
from ibsgl.seals import seal_of

T = TypeVar("T")

_THREADS = 4
# The pixels of a mask that belong to no class.
_VOID = 255


def ahead(items: Iterable[T]) -> Iterator[T]:
    """``items``, the next of which is made in the background. An error is raised where its item would be."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield cast(T, item)


def _open(root: Path, file: str | Path, sha256: str) -> Image.Image:
    """The decoded image. ``ValueError`` names a file that is truncated, no image, or not the one in the index."""
    path = root / file
    content = path.read_bytes()
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        # A run that has made the folder can make it again.
        advice = f"delete the folder {root}" if seal_of(root).is_file() else "put that back, or delete the index"
        raise ValueError(f"{path} is another file than when the index was made; {advice} and run again")
    return open_image(content, path)


def _rgb(image: Image.Image) -> Image.Image:
    """``image`` with 8 bits for each of three colours."""
    if image.mode.startswith("I;16"):
        # Grey. Pillow would clip it to 8 bits.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _covered(low: int, high: int, length: int, size: int) -> slice:
    """The pixels, of ``size`` along a side, whose centres are in [low, high) of ``length``; at least the one in the middle."""
    # Centre i is (i + ½)·length/size. Integers are compared, so that there is no rounding error.
    first, last = ((2 * size * edge + length - 1) // (2 * length) for edge in (low, high))
    if first == last:
        first = (low + high) * size // (2 * length)
        last = first + 1
    return slice(first, last)


class ImageDataset:
    """A data set's images, labels and regions at the network's input size.

    Args:
        index: the index of :meth:`ibsgl.data.sources.DataSource.build_index`.
        root: the data set's folder, as a path that is valid in the working directory.
        size: side S of the network's square input in pixels.
    """

    def __init__(self, index: Index, root: Path, size: int):
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, not {size}")
        self.index = index
        self.root = Path(root)
        self.size = size
        files = zip(index.table["file"], index.table["sha256"], strict=True)
        self._files = dict(zip(index.table["image_id"], files, strict=True))

    def pairs(self, split: str) -> pd.DataFrame:
        """The index's rows of ``split`` (one of :data:`ibsgl.data.index.SPLITS`), numbered from 0."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        return self.index.table[self.index.table["split"] == split].reset_index(drop=True)

    def ids(self, split: str) -> list[str]:
        """The split's N image ids, each once, in order."""
        return self.pairs(split)["image_id"].drop_duplicates().tolist()

    def labels(self, split: str) -> torch.Tensor:
        """(N,K) float32: 1 for every class that the image shows, else 0. Rows are in the order of :meth:`ids`."""
        pairs = self.pairs(split)
        labels = torch.zeros(pairs["image_id"].nunique(), len(self.index.class_names))
        labels[torch.from_numpy(pd.factorize(pairs["image_id"])[0]), torch.tensor(pairs["target"].to_numpy())] = 1
        return labels

    def difficult(self, split: str) -> torch.Tensor:
        """(N,K) bool: whether all objects of the class are marked difficult. Rows are in the order of :meth:`ids`."""
        images = self.pairs(split).drop_duplicates("image_id")
        difficult = torch.zeros(len(images), len(self.index.class_names), dtype=torch.bool)
        for row, targets in zip(difficult, images["difficult"], strict=True):
            row[list(targets)] = True
        return difficult

    def _pixels(self, image_id: str) -> np.ndarray:
        file, sha256 = self._files[image_id]
        image = _rgb(_open(self.root, file, sha256))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def images(self, ids: Sequence[str]) -> torch.Tensor:
        """(N,3,S,S) float32 RGB in [0,1], with channels last in memory.

        Images are resized bilinearly with antialiasing. EXIF tags are ignored. An error names a file that cannot be read.
        """
        if not len(ids):
            return torch.zeros(0, 3, self.size, self.size)
        with ThreadPoolExecutor(_THREADS) as pool:
            pixels = np.stack(list(pool.map(self._pixels, ids)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)

    def batches(self, ids: Sequence[str], batch_size: int) -> Iterator[tuple[list[str], torch.Tensor]]:
        """(ids, :meth:`images`) for ``batch_size`` ids at a time, in order. The next batch is read in the background."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        chunks = (list(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size))
        yield from ahead((chunk, self.images(chunk)) for chunk in chunks)

    def _boxes(self, boxes: list[list[int]], width: int, height: int) -> np.ndarray:
        region = np.zeros((self.size, self.size), dtype=bool)
        for x0, y0, x1, y1 in boxes:
            region[_covered(y0, y1, height, self.size), _covered(x0, x1, width, self.size)] = True
        return region

    def _mask(self, image_id: str, sha256: str, target: int, width: int, height: int) -> np.ndarray:
        path = mask_path(self.root, image_id)
        mask = _open(self.root, path.relative_to(self.root), sha256)
        if mask.mode not in ("P", "L"):
            raise ValueError(
                f"{path}: a mask must have class numbers (a palette or grey PNG), but its mode is {mask.mode}"
            )
        if mask.size != (width, height):
            raise ValueError(f"{path}: the mask is {mask.width}×{mask.height} but the image {width}×{height}")
        classes = np.asarray(mask)
        known = len(self.index.class_names)
        unknown = classes[(classes > known) & (classes != _VOID)]
        if unknown.size:
            raise ValueError(
                f"{path}: class number {unknown[0]} in a data set of {known} classes; masks number the class names "
                "from 1, so list them in the masks' order"
            )
        return np.asarray(mask.resize((self.size, self.size), Image.Resampling.NEAREST)) == target + 1

    def regions(self, pairs: pd.DataFrame, kind: Literal["boxes", "segmentation"] = "boxes") -> torch.Tensor:
        """(N,S,S) bool: where each row's class is. No region is empty.

        Args:
            pairs: N rows of the index.
            kind: ``"boxes"``: the union of the class's boxes, resized as the image is. A pixel belongs to a box if its centre
                is in the box. If a box contains no centre along an axis, it gets the pixel in its middle. ``"segmentation"``:
                the class's pixels in ``SegmentationClass`` (the class's index plus one; 255 is no class), resized by nearest
                neighbours. If the image has no mask, or the resized mask does not show the class, the boxes are used.

        Raises:
            ValueError: a mask does not fit its image or the class names. The message names the file.
        """
        if kind not in ("boxes", "segmentation"):
            raise ValueError(f"regions: kind must be 'boxes' or 'segmentation', not {kind!r}")
        regions = np.zeros((len(pairs), self.size, self.size), dtype=bool)
        for region, row in zip(regions, pairs.itertuples(), strict=True):
            if kind == "segmentation" and row.mask_sha256:
                region[:] = self._mask(row.image_id, row.mask_sha256, row.target, row.width, row.height)
            if not region.any():
                region[:] = self._boxes(row.boxes, row.width, row.height)
        return torch.from_numpy(regions)
