"""How well a map shows what the network uses: Average Drop and Average Increase (Tables 3 and 4).

The image is reduced to the part with high values in the map (:func:`keep_top`). The network scores the whole and the reduced
image, and the two scores of the target class are compared (Chattopadhay et al. 2018). Images are RGB in [0, 1], so black is 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from ibsgl.metrics.base import Evidence, Metric
from ibsgl.metrics.localization import above_quantile


def keep_top(
    images: torch.Tensor,
    saliency: torch.Tensor,
    top: float = 0.15,
    fill: torch.Tensor | float = 0.0,
    *,
    mode: Literal["top", "scale"] = "top",
) -> torch.Tensor:
    """The images, reduced to the part with high values in their maps.

    Args:
        images: (B,3,H,W) in [0, 1].
        saliency: (B,H,W), finite and ≥ 0.
        top: fraction of the pixels that ``mode="top"`` keeps: those strictly above the (1 − top) quantile of the map.
        fill: what replaces the rest: 0 for black, or a colour (3,1,1), such as ``network.mean``.
        mode: ``top``, or ``scale``: image · m + fill · (1 − m), where m is the map scaled to [0, 1] by its own minimum and
            maximum (Grad-CAM++ with a black fill).

    Returns:
        (B,3,H,W). With a map that is zero or constant everywhere, nothing is kept in both modes.

    Raises:
        ValueError: shapes do not fit, a map is not finite, or ``mode`` is unknown.
    """
    if images.ndim != 4 or saliency.shape != images.shape[:1] + images.shape[2:]:
        raise ValueError(
            f"images (B, 3, H, W) and saliency (B, H, W) do not fit: {tuple(images.shape)} and {tuple(saliency.shape)}"
        )
    if not torch.isfinite(saliency).all():
        raise ValueError("saliency must be finite")
    background = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    if mode == "top":
        return torch.where(above_quantile(saliency, top)[:, None], images, background)
    if mode == "scale":
        low, high = saliency.amin((1, 2), keepdim=True), saliency.amax((1, 2), keepdim=True)
        weight = ((saliency - low) / (high - low).where(high > low, 1))[:, None].to(images.dtype)
        return images * weight + background * (1 - weight)
    raise ValueError(f"mode must be 'top' or 'scale', not {mode!r}")


def _check(p_full: torch.Tensor, p_kept: torch.Tensor) -> None:
    if p_full.ndim != 1 or p_full.shape != p_kept.shape:
        raise ValueError(
            f"p_full and p_kept must share one shape (B,), not {tuple(p_full.shape)} and {tuple(p_kept.shape)}"
        )
    for name, p in (("p_full", p_full), ("p_kept", p_kept)):
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"{name} must hold probabilities in [0, 1]")


def average_drop(p_full: torch.Tensor, p_kept: torch.Tensor, relative: bool = True) -> torch.Tensor:
    """max(0, p_full − p_kept) / p_full, the fraction of the score that is lost. Its mean is Average Drop. Lower is better.

    Args:
        p_full: (B,) probability of the target on the whole image.
        p_kept: (B,) the same on the reduced image.
        relative: whether to divide by ``p_full``. ``False`` gives the absolute drop.

    Returns:
        (B,) in [0, 1]. 0 where ``p_full`` is 0.
    """
    _check(p_full, p_kept)
    drop = (p_full - p_kept).clamp_min(0)
    return drop / p_full.where(p_full > 0, 1) if relative else drop


def average_increase(p_full: torch.Tensor, p_kept: torch.Tensor) -> torch.Tensor:
    """1 if the target's probability on the reduced image is strictly higher, else 0 (B,). Higher is better.

    Args:
        p_full: (B,) probability of the target on the whole image.
        p_kept: (B,) the same on the reduced image.
    """
    _check(p_full, p_kept)
    return (p_kept > p_full).to(p_full.dtype)


class AverageDrop(Metric):
    """:func:`average_drop` in the tables."""

    key: ClassVar[str] = "average_drop"
    label: ClassVar[str] = "AD(%)"
    higher_is_better: ClassVar[bool] = False
    table: ClassVar[Literal["localization", "faithfulness"]] = "faithfulness"
    in_paper: ClassVar[bool] = True

    form: Literal["relative", "absolute"] = Field(
        "relative", description="drop as a share of the whole image's score, or as a difference"
    )

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """(B,) in [0, 1]."""
        return average_drop(evidence.p_full, evidence.p_kept, relative=self.form == "relative")


class AverageIncrease(Metric):
    """:func:`average_increase` in the tables."""

    key: ClassVar[str] = "average_increase"
    label: ClassVar[str] = "AI(%)"
    higher_is_better: ClassVar[bool] = True
    table: ClassVar[Literal["localization", "faithfulness"]] = "faithfulness"
    in_paper: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """(B,) 0 or 1."""
        return average_increase(evidence.p_full, evidence.p_kept)
