"""How well a saliency map agrees with the object's boxes: EBPG, mIoU and Bbox (Section 4.3, Tables 1 and 2).

The three functions take maps (B,H,W), finite and ≥ 0, and ``region`` (B,H,W) bool, the union of the target class's boxes. They
return (B,) float32 in [0, 1]. An empty region is a ``ValueError``. Sums and thresholds are in float64, so that a map has the
same score alone and in a batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from ibsgl.metrics.base import Evidence, Metric
from ibsgl.settings import ProperFraction


def _check(saliency: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps, in float64, and the regions, both flattened to (B,H·W); ``ValueError`` if they do not fit."""
    if saliency.ndim != 3 or saliency.shape != region.shape:
        raise ValueError(
            f"saliency and region must share one shape (B, H, W), not {tuple(saliency.shape)} and {tuple(region.shape)}"
        )
    if region.dtype != torch.bool:
        raise ValueError(f"region must be bool, not {region.dtype}")
    if not (torch.isfinite(saliency) & (saliency >= 0)).all():
        raise ValueError("saliency must be finite and >= 0; rectify a signed map before scoring it")
    empty = (~region.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"region is empty for entries {empty} of the batch; leave out classes without a box")
    return saliency.flatten(1).double(), region.flatten(1)


def above_quantile(saliency: torch.Tensor, top: float) -> torch.Tensor:
    """The pixels strictly above the (1 − ``top``) quantile of their own map.

    Args:
        saliency: (B,H,W).
        top: fraction of the pixels, in (0, 1).

    Returns:
        (B,H,W) bool. The quantile interpolates linearly between neighbours, as ``numpy.quantile`` does. Pixels that are equal
        to it are False. So at most the fraction ``top`` is True, and a constant map has no True pixel.
    """
    if not 0 < top < 1:
        raise ValueError(f"top must be in (0, 1), not {top}")
    flat = saliency.flatten(1).double()
    position = (1 - top) * (flat.shape[1] - 1)
    below = int(position)
    # torch.quantile takes at most 16 million elements, and a batch of photographs has more.
    low = flat.kthvalue(below + 1, dim=1, keepdim=True).values
    # The value of the next rank. A second search for a rank would take several times as long.
    above = flat > low
    following = flat.masked_fill(~above, torch.inf).amin(1, keepdim=True)
    high = low.where(above.sum(1, keepdim=True) < max(1, flat.shape[1] - below - 1), following)
    return (flat > low + (high - low) * (position - below)).view_as(saliency)


def ebpg(saliency: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Energy-based pointing game (Wang et al. 2020): the share of the map's sum that is inside the region.

    For a map that is zero everywhere: 0. For a constant map: the region's share of the image. For a region that is the whole
    image: 1, or 0 if the map is zero everywhere.
    """
    values, inside = _check(saliency, region)
    total = values.sum(1)
    return ((values * inside).sum(1) / total.where(total > 0, 1)).float()


def miou(
    saliency: torch.Tensor, region: torch.Tensor, top: float = 0.20, mode: Literal["quantile", "value"] = "quantile"
) -> torch.Tensor:
    """Intersection over union of the region and the pixels above a threshold. Its mean over images is the mIoU.

    Args:
        saliency, region: (B,H,W).
        top: fraction of the pixels above the threshold of ``quantile``. ``value`` does not use it.
        mode: the threshold, which pixels must exceed strictly. ``quantile``: the (1 − top) quantile of the map. ``value``: the
            middle of its range, (min + max) / 2.

    For a map that is zero or constant everywhere: 0, because no pixel is above the threshold. For a region that is the whole
    image: the share of pixels above the threshold.
    """
    values, inside = _check(saliency, region)
    if mode == "quantile":
        kept = above_quantile(saliency, top).flatten(1)
    elif mode == "value":
        kept = values > (values.amin(1, keepdim=True) + values.amax(1, keepdim=True)) / 2
    else:
        raise ValueError(f"mode must be 'quantile' or 'value', not {mode!r}")
    return ((kept & inside).sum(1).double() / (kept | inside).sum(1)).float()


def bbox(saliency: torch.Tensor, region: torch.Tensor, ties: Literal["strict", "index"] = "strict") -> torch.Tensor:
    """Bbox (Schulz et al. 2020): how many of the N highest pixels are inside the region, divided by N. N is the region's area.

    Args:
        saliency, region: (B,H,W).
        ties: ``strict`` takes the pixels strictly above the N-th highest value. These are at most N − 1. ``index`` takes
            exactly N pixels, with equal values in row-major order.

    For a map that is zero or constant everywhere: 0 with ``strict``; with ``index`` the share of the first N pixels that are
    inside. For a region that is the whole image: 1 with ``index``; with ``strict`` the share of pixels above the map's minimum.
    """
    values, inside = _check(saliency, region)
    area = inside.sum(1, keepdim=True)
    if ties == "strict":
        # Only one value per map is needed, and its rank differs between maps. This is much faster than a sort.
        ranks = (values.shape[1] + 1 - area[:, 0]).tolist()
        nth = torch.stack([row.kthvalue(rank).values for row, rank in zip(values, ranks, strict=True)])
        hits = inside & (values > nth[:, None])
    elif ties == "index":
        order = values.argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(values.shape[1], device=values.device)
        hits = inside.gather(1, order) & (rank < area)
    else:
        raise ValueError(f"ties must be 'strict' or 'index', not {ties!r}")
    return (hits.sum(1).double() / area[:, 0]).float()


class EBPG(Metric):
    """:func:`ebpg` in the tables."""

    key: ClassVar[str] = "ebpg"
    label: ClassVar[str] = "EBPG"
    higher_is_better: ClassVar[bool] = True
    table: ClassVar[Literal["localization", "faithfulness"]] = "localization"
    in_paper: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """(B,) in [0, 1]."""
        return ebpg(evidence.saliency, evidence.region)


class MIoU(Metric):
    """:func:`miou` in the tables."""

    key: ClassVar[str] = "miou"
    label: ClassVar[str] = "mIoU"
    higher_is_better: ClassVar[bool] = True
    table: ClassVar[Literal["localization", "faithfulness"]] = "localization"
    in_paper: ClassVar[bool] = True

    mode: Literal["quantile", "value"] = Field(
        "quantile", description="threshold: a quantile of the map, or (`value`) the middle of its range"
    )
    top: ProperFraction = Field(0.2, description="share of the pixels above the quantile; `value` does not use it")

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """(B,) in [0, 1]."""
        return miou(evidence.saliency, evidence.region, top=self.top, mode=self.mode)


class Bbox(Metric):
    """:func:`bbox` in the tables."""

    key: ClassVar[str] = "bbox"
    label: ClassVar[str] = "Bbox"
    higher_is_better: ClassVar[bool] = True
    table: ClassVar[Literal["localization", "faithfulness"]] = "localization"
    in_paper: ClassVar[bool] = True

    ties: Literal["strict", "index"] = Field(
        "strict",
        description="`strict`: pixels equal to the N-th value do not count. `index`: exactly N pixels, ties by index",
    )

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """(B,) in [0, 1]."""
        return bbox(evidence.saliency, evidence.region, ties=self.ties)
