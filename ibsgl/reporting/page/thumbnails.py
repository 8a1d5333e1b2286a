"""Thumbnails of the map browser: for each test pair one picture with the image and its maps, cell by cell.

A picture is a grid of square cells, ``columns`` wide. Cell 0 is the image. Then follow the maps, in the order of ``maps``. A
map is grey: black is zero, white is its largest value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from PIL import Image
from torch import nn

from ibsgl.attribution.registry import Attribution
from ibsgl.attribution.storage import Maps
from ibsgl.config.schema import SANITY_METHODS
from ibsgl.evaluation.held_out import pearson
from ibsgl.files import write_json
from ibsgl.inference import pair_batches
from ibsgl.maps import maps_of_batch
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.provenance import digest_file
from ibsgl.randomness import derive_seed
from ibsgl.seals import sealed
from ibsgl.training.variants import PRETRAINED

if TYPE_CHECKING:
    from ibsgl.bottleneck import FeatureStatistics
    from ibsgl.data.loading import ImageDataset

# Rows of the index, images, and by variant and method the maps.
Batch: TypeAlias = tuple[pd.DataFrame, torch.Tensor, Mapping[str, Mapping[str, torch.Tensor]]]

# The largest side of a cell in pixels, and the quality of the pictures (WebP).
SIDE, QUALITY = 96, 70
COLUMNS = 8
# The list of the pictures in their folder.
LISTING = "maps.json"


def choose_images(pairs: pd.DataFrame, images: int, seed: int) -> pd.DataFrame:
    """The rows of ``pairs`` of ``images`` images, or of all. A hash of the image id chooses them, and the order stays."""
    ids = pairs["image_id"].drop_duplicates()
    ranked = sorted(ids, key=lambda image_id: (derive_seed(seed, "report", image_id), image_id))
    return pairs[pairs["image_id"].isin(set(ranked[:images]))]


def disagreement(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much maps (B,H,W) of several methods disagree: (B,), 1 − the mean of Pearson's r over all pairs of methods.

    A constant map has no r. NaN if no two maps of an image have one.
    """
    found = [pearson(first, second) for first, second in itertools.combinations(maps, 2)]
    return 1 - torch.stack(found).nanmean(0) if found else torch.full((len(maps[0]) if maps else 0,), torch.nan)


def shrunk(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B,C,H,W) or maps (B,H,W) on the CPU with ``side`` pixels along both sides, antialiased."""
    four = pictures if pictures.ndim == 4 else pictures[:, None]
    small = nn.functional.interpolate(four, (side, side), mode="bilinear", antialias=True).cpu()
    return small if pictures.ndim == 4 else small[:, 0]


def picture(image: torch.Tensor, maps: torch.Tensor) -> Image.Image:
    """The grid of cells of an image (3,s,s) in [0,1] and its maps (M,s,s) ≥ 0."""
    side = image.shape[-1]
    largest = maps.flatten(1).amax(1)[:, None, None]
    scaled = maps / torch.where(largest > 0, largest, torch.ones_like(largest))
    cells = torch.cat([image[None], scaled[:, None].expand(-1, 3, -1, -1)])
    grid = Image.new("RGB", (min(COLUMNS, len(cells)) * side, -(-len(cells) // COLUMNS) * side))
    pixels = (255 * cells.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
    for number, cell in enumerate(pixels):
        grid.paste(Image.fromarray(cell), (number % COLUMNS * side, number // COLUMNS * side))
    return grid


def maps_of_sample(
    networks: Mapping[str, SplitNetwork],
    data: ImageDataset,
    sample: pd.DataFrame,
    methods: Mapping[str, Mapping[str, Attribution]],
    stored: Mapping[str, Sequence[Maps]],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    statistics: FeatureStatistics | None,
) -> Iterator[Batch]:
    """The maps of the rows ``sample`` of the test split, as small as they are shown.

    Args:
        networks: by variant, on ``device``.
        data: at the networks' input size.
        sample: rows of ``data.pairs("test")``.
        methods: by variant and name, the methods whose maps are made here.
        stored: by variant, the maps that exist already, one entry for each shard.
        seed: root seed of the maps' random draws.
        batch_size: images per batch.
        device: where the networks run.
        statistics: feature statistics, for methods that require them.

    Yields:
        for consecutive rows: the rows, images (B,3,s,s), and by variant and method the maps (B,s,s).
    """
    side = min(SIDE, data.size)
    wanted = set(sample.index)
    read: dict[str, dict[str, dict[Any, torch.Tensor]]] = {variant: {} for variant in networks}
    for variant, shards in stored.items():
        for shard in shards:
            rows = iter(shard.pairs.index)
            for batch in shard.batches(batch_size):
                numbers = list(itertools.islice(rows, len(next(iter(batch.values())))))
                for method, maps in batch.items():
                    of_method = read[variant].setdefault(method, {})
                    if keep := [place for place, number in enumerate(numbers) if number in wanted]:
                        of_method |= zip([numbers[place] for place in keep], shrunk(maps[keep], side), strict=True)
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        for rows, images, targets in pair_batches(data, sample, batch_size, device, "thumbnails"):
            shown: dict[str, dict[str, torch.Tensor]] = {}
            for variant, network in networks.items():
                made = maps_of_batch(
                    network, data, rows, images, targets, methods[variant], seed=seed, statistics=statistics
                )
                shown[variant] = {method: shrunk(maps, side) for method, maps in made.items()}
                shown[variant] |= {
                    method: torch.stack([of_pair[number] for number in rows.index])
                    for method, of_pair in read[variant].items()
                }
            yield rows, shrunk(images, side), shown


def write_thumbnails(folder: Path, batches: Iterable[Batch], labels: Mapping[str, str]) -> None:
    """Write a picture for each pair, and the list of them.

    Args:
        folder: it is created. Files are called ``<number>.webp`` and :data:`LISTING`; no name comes from the data.
        batches: those of :func:`maps_of_sample`.
        labels: the methods' names in tables.

    The list is JSON: ``side`` of a cell in pixels, ``columns``, ``maps`` ([variant, method, label] of each cell after the
    first), and ``pairs``: ``file`` and its ``sha256``, ``image_id``, ``class_name``, ``target``, ``boxes`` ([x, y, width,
    height] as shares of the image) and ``disagreement`` of the methods on the pretrained network (null if it is not defined).
    """
    folder.mkdir(parents=True, exist_ok=True)
    side = SIDE
    names: list[list[str]] = []
    listed: list[dict[str, Any]] = []
    for rows, images, maps in batches:
        side = images.shape[-1]
        names = [[variant, method, labels[method]] for variant, methods in maps.items() for method in methods]
        stacked = torch.stack([maps[variant][method] for variant, method, _ in names], 1)
        differ = disagreement([of for method, of in maps[PRETRAINED].items() if method not in SANITY_METHODS])
        for row, image, of_pair, apart in zip(rows.itertuples(), images, stacked, differ.tolist(), strict=True):
            file = f"{len(listed)}.webp"
            picture(image, of_pair).save(folder / file, quality=QUALITY)
            listed.append(
                {
                    "file": file,
                    "sha256": digest_file(folder / file),
                    "image_id": row.image_id,
                    "class_name": row.class_name,
                    "target": int(row.target),
                    "boxes": [
                        [x0 / row.width, y0 / row.height, (x1 - x0) / row.width, (y1 - y0) / row.height]
                        for x0, y0, x1, y1 in row.boxes
                    ],
                    "disagreement": None if math.isnan(apart) else round(apart, 4),
                }
            )
    with sealed(folder / LISTING) as temporary:
        write_json(temporary, {"side": side, "columns": COLUMNS, "maps": names, "pairs": listed})
