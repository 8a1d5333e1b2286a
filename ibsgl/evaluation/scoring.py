"""Scores of saliency maps: every metric for every (variant, method, image, class)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from ibsgl.metrics import Evidence, MetricSettings, faithfulness
from ibsgl.networks.chunks import in_pieces
from ibsgl.networks.split import SplitNetwork

# The method whose maps are also scored by another variant's network.
CROSS_SCORED = "gradient"


def scorers(variant: str, method: str, variants: Sequence[str], reference: str) -> list[str]:
    """The variants whose networks score the maps of ``method`` on ``variant``: first ``variant`` itself.

    Maps of :data:`CROSS_SCORED` have further scorers: every other variant for the maps of ``reference``, and ``reference`` for
    the maps of every other variant. So the effect of the map and that of the network's confidence can be told apart.
    """
    if method != CROSS_SCORED:
        return [variant]
    return [variant, *(other for other in variants if other != variant and reference in (variant, other))]


def image_logits(network: SplitNetwork, images: torch.Tensor) -> torch.Tensor:
    """Logits (B,K) of ``images`` (B,3,H,W), in smaller batches if the memory is too small."""
    return in_pieces(network, images.contiguous(memory_format=torch.channels_last))


def target_probabilities(network: SplitNetwork, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits (B,K) and targets (B,) → the target's probability (B,), by the network's sigmoid or softmax."""
    return network.probabilities(logits).gather(1, targets[:, None]).squeeze(1)


@torch.inference_mode()
def score_maps(
    networks: Mapping[str, SplitNetwork],
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    region: torch.Tensor,
    p_full: Mapping[str, torch.Tensor],
    maps: Mapping[str, Mapping[str, torch.Tensor]],
    metrics: MetricSettings,
    *,
    reference: str,
) -> pd.DataFrame:
    """Score the maps of every variant and method on one batch of pairs.

    Args:
        networks: by variant, in evaluation mode, on the device of ``images``.
        rows: B rows of the data set's index.
        images: (B,3,H,W).
        targets: (B,) int64.
        region: (B,H,W) bool, where the targets are.
        p_full: by variant, the target's probability on the whole image (B,).
        maps: by variant and method, saliency (B,H,W).
        metrics: the settings of all metrics.
        reference: the variant of the cross-scoring; see :func:`scorers`.

    Returns:
        one row per (variant, method, scorer, pair): ``variant``, ``scored_on``, ``method``, ``image_id``, ``class_name``,
        ``target``, the target's probability by the network of ``scored_on`` on the whole image (``p_full``) and on the part
        that the map keeps (``p_kept``), and one column per metric. Values are in [0,1].
    """
    identity = rows[["image_id", "class_name", "target"]].reset_index(drop=True)
    frames = []
    for variant, by_method in maps.items():
        network = networks[variant]
        black = torch.zeros(3, 1, 1, device=images.device)
        fill = network.mean.to(images.device) if metrics.kept.fill == "mean" else black
        for method, saliency in by_method.items():
            kept = faithfulness.keep_top(images, saliency, top=metrics.kept.top, fill=fill, mode=metrics.kept.mode)
            for scorer in scorers(variant, method, list(networks), reference):
                p_kept = target_probabilities(networks[scorer], image_logits(networks[scorer], kept), targets)
                evidence = Evidence(saliency, region, p_full[scorer], p_kept)
                values = {"p_full": p_full[scorer], "p_kept": p_kept}
                values |= {metric.key: metric(evidence) for metric in metrics.metrics()}
                names = {"variant": variant, "scored_on": scorer, "method": method}
                numbers = {key: value.double().cpu().numpy() for key, value in values.items()}
                frames.append(identity.assign(**names, **numbers))
    return pd.concat(frames, ignore_index=True)
