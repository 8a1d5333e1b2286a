"""Saliency maps of a data set's (image, class) pairs.

Random draws are seeded by method and image, so a map does not depend on batches or shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.attribution.cost import cost_of, stage_channels
from ibsgl.attribution.registry import Attribution, Row, stored_form
from ibsgl.inference import pair_batches
from ibsgl.networks.chunks import chunked
from ibsgl.networks.gradients import shared_gradient
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.randomness import generator

if TYPE_CHECKING:
    from ibsgl.bottleneck import FeatureStatistics
    from ibsgl.data.loading import ImageDataset

# Masked passes of a method on a network that are worth compiling, in FLOPs. On one core they take four minutes, and compiling
# saves half a minute or more; compiling takes 5 seconds with torch's cache and 20 without, in every shard.
COMPILE_FROM = 2e13


def _saliency(
    method: Attribution,
    name: str,
    network: SplitNetwork,
    data: ImageDataset,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    seed: int,
    statistics: FeatureStatistics | None,
    coarse: bool,
) -> torch.Tensor:
    """The method's maps (B,H,W) float32 of one batch, in smaller batches if the memory is too small."""
    explain = stored_form(method) if coarse else method

    # Rows of one method start from the same draws, whatever they are called.
    drawn_as = method.use if isinstance(method, Row) else name

    def run(start: int, stop: int) -> torch.Tensor:
        part = slice(start, stop)
        context: dict[str, torch.Tensor | FeatureStatistics] = {}
        # New generators in every call, so that a piece that is run again gets the same draws.
        generators = [generator(seed, drawn_as, image_id, device=images.device) for image_id in rows["image_id"][part]]
        if "statistics" in method.requires:
            if statistics is None:
                raise ValueError(f"{name} needs feature statistics; give --statistics")
            context["statistics"] = statistics
        if "region" in method.requires:
            context["region"] = data.regions(rows[part]).to(images.device)
        # For a whole batch pass the tensors themselves, not views: methods that get the same tensors share one pass.
        whole = stop - start == len(rows)
        some_images, some_targets = (images, targets) if whole else (images[part], targets[part])
        return explain(network, some_images, some_targets, generators, **context).float()

    return torch.cat(list(chunked(run, len(rows), len(rows), images.device)))


def batch_to_compile(network: SplitNetwork, method: Attribution, size: int, pairs: pd.DataFrame) -> int:
    """The number of images in the method's masked passes, if these are worth compiling for ``pairs``; otherwise 0.

    It depends on numbers of passes only, and on no measured time, so that the same job is always compiled or never. On a GPU
    nothing is compiled: there the number of images in a pass grows with the free memory.
    """
    # Imported here, because only some jobs need it.
    from torch.utils.flop_counter import FlopCounterMode

    device = network.mean.device
    images = torch.zeros(1, 3, size, size, device=device)
    with evaluating(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = network.stem(images)
        network.head(features)
    cost = cost_of(method, features.shape[1], stage_channels(network, size))
    if cost is None or not cost.mixed:
        return 0
    # The masked passes of an image. Gradients are not compiled: that is slower than folding batch norm alone.
    masked, chunk = int(cost.image.head), getattr(method, "chunk", 1)
    # If some masks may not be needed, only chunks well below their number are often full.
    full = 2 * chunk <= masked or not cost.at_most
    flops = masked * pairs["image_id"].nunique() * counter.get_total_flops()
    return min(chunk, masked) if device.type == "cpu" and full and flops >= COMPILE_FROM else 0


def maps_of_batch(
    network: SplitNetwork,
    data: ImageDataset,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    methods: Mapping[str, Attribution],
    *,
    seed: int,
    statistics: FeatureStatistics | None = None,
    coarse: bool = False,
) -> dict[str, torch.Tensor]:
    """The maps of several methods for one batch of pairs. Methods that need the gradient share one pass.

    Args:
        network: the network that is explained.
        data: at the network's input size.
        rows: B rows of the data set's index.
        images: (B,3,H,W), on the network's device.
        targets: (B,) int64.
        methods: by name.
        seed: root seed. Random draws are seeded by (seed, registered name of the method, image id).
        statistics: of the network's features, for methods that require them.
        coarse: whether methods that compute small maps return these, (B,h,w), as they are stored. See ``Attribution.coarse``.

    Returns:
        by method, saliency (B,H,W) float32 on the device of ``images``.

    Raises:
        FloatingPointError: a method returned a value that is not finite, or is negative.
    """
    maps = {}
    with shared_gradient():
        for name, method in methods.items():
            saliency = _saliency(method, name, network, data, rows, images, targets, seed, statistics, coarse)
            bad = ~(saliency.isfinite() & (saliency >= 0)).flatten(1).all(1)
            if bad.any():
                row = rows.iloc[int(bad.nonzero()[0])]
                raise FloatingPointError(
                    f"{name}: the map of image {row['image_id']}, class {row['class_name']} is not finite and ≥ 0"
                )
            maps[name] = saliency
    return maps


def compute_maps(
    network: SplitNetwork,
    data: ImageDataset,
    pairs: pd.DataFrame,
    methods: Mapping[str, Attribution],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    statistics: FeatureStatistics | None = None,
    coarse: bool = False,
) -> Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
    """The maps of several methods, one batch of pairs at a time.

    Args:
        network: the network that is explained, on ``device``.
        data: at the network's input size.
        pairs: rows of the data set's index.
        methods: by name.
        seed: root seed. Random draws are seeded by (seed, registered name of the method, image id).
        batch_size: pairs per batch.
        device: where the maps are computed.
        statistics: of the network's features, for methods that require them.
        coarse: see :func:`maps_of_batch`.

    Yields:
        (rows, {name: saliency (B,H,W) float32 on the CPU}) for consecutive rows of ``pairs``.

    Raises:
        FloatingPointError: a method returned a value that is not finite, or is negative.
    """
    for rows, images, targets in pair_batches(data, pairs, batch_size, device, ", ".join(methods)):
        maps = maps_of_batch(
            network, data, rows, images, targets, methods, seed=seed, statistics=statistics, coarse=coarse
        )
        yield rows, {name: saliency.cpu() for name, saliency in maps.items()}
