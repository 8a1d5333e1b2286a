"""What guided training needs before it starts: feature statistics, and L^ib of every training pair."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from ibsgl.bottleneck import Bottleneck, FeatureStatistics
from ibsgl.guidance.localization import other_class
from ibsgl.inference import pair_batches
from ibsgl.networks.chunks import chunked, in_pieces
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.randomness import generator

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def feature_statistics(
    network: SplitNetwork, data: ImageDataset, batch_size: int, device: torch.device
) -> FeatureStatistics:
    """μ_A and σ_A over the training images (Section 3.2), with one pass of the stem per image."""
    network.eval()
    statistics = FeatureStatistics()
    ids = data.ids("train")
    with torch.inference_mode(), tqdm(total=len(ids), desc="feature statistics", unit="image", disable=None) as bar:
        for batch_ids, images in data.batches(ids, batch_size):
            statistics.update(in_pieces(network.stem, images.to(device)))
            bar.update(len(batch_ids))
    return statistics.to("cpu")


def bottleneck_maps(
    network: SplitNetwork,
    data: ImageDataset,
    pairs: pd.DataFrame,
    method: Bottleneck,
    statistics: FeatureStatistics,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """L^ib (N,h,w) of N pairs, at the size of the feature map and in nats, for guided training."""
    maps = []
    with evaluating(network):
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "bottleneck"):
            run = partial(_bottleneck_maps, network, rows, images, targets, method, statistics, seed)
            maps += [part.cpu() for part in chunked(run, len(rows), len(rows), device)]
    return torch.cat(maps)


def other_targets(
    network: SplitNetwork, data: ImageDataset, pairs: pd.DataFrame, batch_size: int, device: torch.device
) -> torch.Tensor:
    """(N,) int64 on the CPU: the class p of each pair, the likeliest one that the image does not show.

    The N ``pairs`` are all pairs of one split.
    """
    split = pairs["split"].iloc[0]
    labels = dict(zip(data.ids(split), data.labels(split).bool(), strict=True))
    parts = []
    with evaluating(network), torch.no_grad():
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "other class"):
            logits = in_pieces(network, images)
            shown = torch.stack([labels[image_id] for image_id in rows["image_id"]]).to(device)
            parts.append(other_class(logits, targets, shown if network.multilabel else None).cpu())
    return torch.cat(parts)


def _bottleneck_maps(
    network: SplitNetwork,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    method: Bottleneck,
    statistics: FeatureStatistics,
    seed: int,
    start: int,
    stop: int,
) -> torch.Tensor:
    """L^ib (n,h,w) of the rows from ``start`` to ``stop`` of a batch."""
    part = slice(start, stop)
    generators = [generator(seed, "bottleneck", image_id, device=images.device) for image_id in rows["image_id"][part]]
    with torch.no_grad():
        features = network.stem(images[part])
    return method.feature_saliency(network, features, targets[part], statistics, generators)
