"""Insertion and deletion: the target's probability as the pixels are shown or hidden in the order of the map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from ibsgl.metrics.deletion import area_under, replaced_curve, turns
from ibsgl.metrics.further.base import PairEvidence, Requires
from ibsgl.settings import Positive

# Side in pixels and standard deviation of the kernel that blurs.
_SIDE, _SIGMA = 11, 5


@cache
def blur_kernel() -> torch.Tensor:
    """(11,11), the kernel of RISE's code: an impulse in the middle of 11×11 pixels, filtered by a Gaussian of σ = 5.

    The filter reflects at the edges, so the kernel is flatter than a Gaussian that is cut off.
    """
    impulse = np.zeros((_SIDE, _SIDE))
    impulse[_SIDE // 2, _SIDE // 2] = 1
    return torch.from_numpy(gaussian_filter(impulse, _SIGMA)).float()


def blurred(images: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Images (B,3,H,W), blurred by :func:`blur_kernel`. Outside the images is the colour ``mean`` (3,1,1)."""
    kernel = blur_kernel().to(images).expand(3, 1, -1, -1)
    return mean + functional.conv2d(images - mean, kernel, padding=_SIDE // 2, groups=3)


def map_order_curve(evidence: PairEvidence, steps: int, kind: Literal["insertion", "deletion"]) -> torch.Tensor:
    """The target's probability (B, steps + 1) as the pixels are inserted or deleted, the highest of the map first.

    Step k of K has changed round(k·H·W / K) pixels. Equal values are in row-major order.
    """
    network, images = evidence.with_network()
    order = evidence.saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    pixels = order.shape[1]
    counts = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=order.device)
    start, end = images, torch.zeros(3, 1, 1, dtype=images.dtype, device=images.device)
    if kind == "insertion":
        start, end = blurred(images, network.mean.to(images)), images
    curves = replaced_curve(
        network, start, end, evidence.targets, turns(order)[:, None], counts, pixels, chunk=evidence.batch_size
    )
    return curves[:, 0]


@dataclass(frozen=True)
class _Curve:
    """The settings of both curves."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires: ClassVar[Requires] = "network"
    kind: ClassVar[Literal["insertion", "deletion"]]
    steps: Positive = 224

    def forward_passes(self) -> int:
        """One for each point of the curve."""
        return self.steps + 1

    def further_maps(self) -> int:
        """None."""
        return 0

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) in [0,1]: the area under the curve, by the trapezoidal rule."""
        curve = map_order_curve(evidence, self.steps, self.kind)
        return area_under(curve, [step / self.steps for step in range(self.steps + 1)])


@dataclass(frozen=True)
class Deletion(_Curve):
    """Deletion (RISE; Petsiuk et al., BMVC 2018): area under the curve as pixels become black, the map's highest first.

    A low area: what the map marks first is what the network needs. RISE's code deletes to the colour that normalisation maps to
    zero; here it is black, as the paper says.

    Args:
        steps: equal steps from the whole image to the black one. RISE takes 224 on images of 224 pixels.
    """

    label: ClassVar[str] = "Deletion"
    higher_is_better: ClassVar[bool] = False
    kind: ClassVar[Literal["insertion", "deletion"]] = "deletion"


@dataclass(frozen=True)
class Insertion(_Curve):
    """Insertion (RISE; Petsiuk et al., BMVC 2018): area under the curve as pixels of the blurred image become sharp.

    The map's highest pixels are first. A high area: what the map marks first is enough for the network. The image is blurred
    with RISE's 11×11 kernel of σ = 5, and outside of it is the colour that normalisation maps to zero, as in RISE's code.

    Args:
        steps: equal steps from the blurred image to the whole one. RISE takes 224 on images of 224 pixels.
    """

    label: ClassVar[str] = "Insertion"
    higher_is_better: ClassVar[bool] = True
    kind: ClassVar[Literal["insertion", "deletion"]] = "insertion"
