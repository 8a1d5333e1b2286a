"""Max-sensitivity: how far a map moves when the image hardly changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from ibsgl.metrics.further.base import PairEvidence, Requires, too_many_passes
from ibsgl.randomness import draw
from ibsgl.settings import Positive


@dataclass(frozen=True)
class MaxSensitivity:
    """Max-sensitivity (Yeh et al., NeurIPS 2019): max over y with ‖y − x‖_∞ ≤ radius of ‖Φ(y) − Φ(x)‖₂ / ‖Φ(x)‖₂.

    Φ(x) is the map of image x. The paper's definition is the numerator alone. The authors' code divides by the norm of the
    map, and so does captum's ``sensitivity_max``, so that methods of different scales can be compared. The maximum is over
    ``samples`` draws from the uniform distribution on the ball, so it is a lower bound. The drawn images may leave [0,1] by
    ``radius``. A method with random draws of its own gets the same draws for all images of a pair. A map that is zero
    everywhere has no value.

    Args:
        samples: drawn images per pair. For each a map is made. 10 as in captum.
        radius: the largest change of a pixel, of colours in [0,1]. 0.02 as in captum.
        max_passes: methods with more passes per map than this, or an unknown number, get no value. `null`: no limit.
    """

    label: ClassVar[str] = "Max-sensitivity"
    higher_is_better: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    requires: ClassVar[Requires] = "method"
    samples: Positive = 10
    radius: Annotated[float, Field(gt=0, le=1)] = 0.02
    max_passes: Positive | None = 50

    def further_maps(self) -> int:
        """One map for each drawn image."""
        return self.samples

    def forward_passes(self) -> int:
        """No others."""
        return 0

    def unsuited(self, passes: float | None) -> str:
        """Why a method with so many passes per map is left out."""
        return too_many_passes(passes, self.max_passes)

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) ≥ 0."""
        network, images, explain = evidence.with_method()
        size = images.shape[1:]
        own = evidence.saliency.flatten(1).double()
        largest = own.new_zeros(len(own))
        for _ in range(self.samples):
            noise = draw(lambda g: torch.rand(size, generator=g, device=g.device), len(images), evidence.generators).to(
                images.device
            )
            moved = explain(network, images + self.radius * (2 * noise - 1)).flatten(1).double()
            largest = largest.maximum((moved - own).norm(dim=1))
        # A map of zeros gives x / 0, or 0 / 0.
        return (largest / own.norm(dim=1)).where(own.norm(dim=1) > 0, torch.nan)
