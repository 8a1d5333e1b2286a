"""Scores of saliency maps: every metric for every (method, image, class)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.attribution.storage import Maps
from ibsgl.inference import pair_batches
from ibsgl.metrics import Evidence, MetricSettings, faithfulness
from ibsgl.networks.chunks import in_pieces
from ibsgl.networks.split import SplitNetwork, autocast, evaluating

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def score_maps(
    network: SplitNetwork,
    data: ImageDataset,
    maps: Maps,
    metrics: MetricSettings,
    *,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """Score the maps of several methods on one variant of a network.

    Args:
        network: the variant, on ``device``.
        data: at the network's input size.
        maps: those of the methods.
        metrics: the settings of all metrics.
        batch_size: images per batch.
        device: where the network runs.

    Returns:
        one row per (method, pair): ``method``, ``image_id``, ``class_name``, ``target``, the target's probability on the
        whole image (``p_full``) and on the part that the map keeps (``p_kept``), and one column per metric. Values are in
        [0,1].
    """
    fill = network.mean.to(device) if metrics.kept.fill == "mean" else torch.zeros(3, 1, 1, device=device)

    def target_probability(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            logits = in_pieces(network, images.contiguous(memory_format=torch.channels_last))
        return network.probabilities(logits.float()).gather(1, targets[:, None]).squeeze(1)

    # With more shards than images, some shards are empty.
    frames = [pd.DataFrame(columns=["method", "image_id", "class_name", "target"])] * maps.pairs.empty
    with evaluating(network), torch.inference_mode():
        batches = pair_batches(data, maps.pairs, batch_size, device, "scores")
        for (rows, images, targets), maps_by_method in zip(batches, maps.batches(batch_size), strict=True):
            region = data.regions(rows, metrics.region).to(device)
            p_full = target_probability(images, targets)
            for name, saliency in maps_by_method.items():
                saliency = saliency.to(device)
                kept = faithfulness.keep_top(images, saliency, top=metrics.kept.top, fill=fill, mode=metrics.kept.mode)
                p_kept = target_probability(kept, targets)
                evidence = Evidence(saliency, region, p_full, p_kept)
                values = {"p_full": p_full, "p_kept": p_kept}
                values |= {metric.key: metric(evidence) for metric in metrics.metrics()}
                frame = rows[["image_id", "class_name", "target"]].reset_index(drop=True)
                frames.append(frame.assign(**{k: v.double().cpu().numpy() for k, v in values.items()}, method=name))
    return pd.concat(frames, ignore_index=True)
