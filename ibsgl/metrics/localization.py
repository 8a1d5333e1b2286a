"""How well a saliency map finds the object's boxes: EBPG, mIoU and Bbox (Section 4.3, Tables 1 and 2).

All three take maps (B,H,W), finite and ≥ 0, and ``region`` (B,H,W) bool, the union of the target class's boxes, and
return (B,) float32 in [0, 1]. A region without a pixel is a ``ValueError``: there is nothing to find. Sums and
thresholds are in float64, so that a map scores the same alone and in a batch.
"""

from __future__ import annotations

from typing import Literal

import torch


def _check(saliency: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two, flattened to (B,H·W), the map in float64."""
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
        raise ValueError(f"region is empty for entries {empty} of the batch; leave out classes that have no box")
    return saliency.flatten(1).double(), region.flatten(1)


def above_quantile(saliency: torch.Tensor, top: float) -> torch.Tensor:
    """The pixels strictly above the (1 − ``top``) quantile of their own map.

    Args:
        saliency: (B,H,W).
        top: fraction of the pixels, in (0, 1).

    Returns:
        (B,H,W) bool. The quantile interpolates linearly between neighbours, as ``numpy.quantile``. Pixels that tie with
        it are out, so a map has at most the fraction ``top`` marked, and a constant map none.
    """
    if not 0 < top < 1:
        raise ValueError(f"top must be in (0, 1), not {top}")
    flat = saliency.flatten(1).double()
    position = (1 - top) * (flat.shape[1] - 1)
    below = int(position)
    # torch.quantile stops at 16 million elements, which a batch of photographs exceeds.
    low = flat.kthvalue(below + 1, dim=1, keepdim=True).values
    high = flat.kthvalue(min(below + 2, flat.shape[1]), dim=1, keepdim=True).values
    return (flat > low + (high - low) * (position - below)).view_as(saliency)


def ebpg(saliency: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Energy-based pointing game (Wang et al. 2020): the share of the map's total that lies inside the region.

    All-zero map: 0. Constant map: the region's share of the image. Region covering the whole image: 1 (0 for an
    all-zero map).
    """
    values, inside = _check(saliency, region)
    total = values.sum(1)
    return ((values * inside).sum(1) / total.where(total > 0, 1)).float()


def miou(
    saliency: torch.Tensor, region: torch.Tensor, top: float = 0.20, mode: Literal["quantile", "value"] = "quantile"
) -> torch.Tensor:
    """Intersection over union of the thresholded map and the region; its mean over images is the mIoU.

    Args:
        saliency, region: (B,H,W).
        top: fraction of the pixels kept by ``quantile``; unused by ``value``.
        mode: ``quantile`` keeps what is strictly above the (1 − top) quantile of the map; ``value`` what is strictly
            above the middle of its range, (min + max) / 2.

    All-zero or constant map: 0, nothing is above the threshold. Region covering the whole image: the share of the image
    that is kept.
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
    """Bbox (Schulz et al. 2020): of the N highest pixels, N the area of the region, the share of N inside the region.

    Args:
        saliency, region: (B,H,W).
        ties: ``strict`` counts the pixels strictly above the N-th highest value, at most N − 1 of them, and divides
            by N; ``index`` takes exactly N pixels, equal values in row-major order.

    All-zero or constant map: 0 under ``strict``; under ``index`` the share of the first N pixels that are inside.
    Region covering the whole image: 1 under ``index``; under ``strict`` the share of pixels above the map's minimum.
    """
    values, inside = _check(saliency, region)
    area = inside.sum(1, keepdim=True)
    if ties == "strict":
        # One value of each map, with a rank of its own: far less than sorting them.
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
