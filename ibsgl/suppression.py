"""The saliency suppression mechanism (Section 3.1, Eq. 1)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from ibsgl.settings import Fraction, NonNegative, Settings


class SuppressionSettings(Settings):
    """Saliency suppression (Eq. 1) and its part in Eq. 10."""

    r: Fraction = Field(
        0.35,
        description="Mask_r has the top ⌈r·h·w⌉ cells of L^c (published: 0.35). Figure 4 deletes in the top r of the image",
    )
    beta: NonNegative = Field(1.0, description="β of Eq. 10 (published: 1)")
    when: Literal["always", "misclassified", "correct", "never"] = Field(
        "always", description="for which images the suppression term counts"
    )


def top_fraction_mask(saliency: torch.Tensor, r: float) -> torch.Tensor:
    """Mask_r = M_r(S(L)): True on exactly the ⌈r·h·w⌉ highest pixels of each map (Eq. 1).

    Args:
        saliency: (B,h,w).
        r: fraction of the pixels, in (0, 1].

    Returns:
        (B,h,w) bool. Equal values are taken in row-major order, so the mask is the same on every device.
    """
    if not 0 < r <= 1:
        raise ValueError(f"r must be in (0, 1], not {r}")
    flat = saliency.flatten(1)
    # The product has a rounding error: 0.35 · 100 = 35.000000000000004 would become 36 pixels.
    count = math.ceil(round(r * flat.shape[1], 9))
    order = flat.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return mask.view_as(saliency)


def suppression_loss(l_c: torch.Tensor, l_p: torch.Tensor, r: float = 0.35) -> torch.Tensor:
    """L_SS (Eq. 1): the overlap of two maps inside the top of the first map, divided by the sum of both maps.

    Args:
        l_c: (B,h,w) saliency of the target class, ≥ 0.
        l_p: (B,h,w) saliency of the likeliest other class, ≥ 0.
        r: fraction of the pixels in Mask_r.

    Returns:
        (B,) in [0, ½], differentiable in both maps. 0 if both maps are zero.
    """
    mask = top_fraction_mask(l_c.detach(), r)
    overlap = (torch.minimum(l_c, l_p) * mask).sum((1, 2))
    mass = (l_c + l_p).sum((1, 2))
    return overlap / mass.clamp_min(torch.finfo(mass.dtype).tiny)
