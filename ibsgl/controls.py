"""Three controls that bracket every localisation figure: a Gaussian in the middle, noise, and the box itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.network import SplitNetwork, check_batch
from ibsgl.randomness import Generators, draw


@dataclass(frozen=True)
class Center:
    """The same centred Gaussian for every image; ``sigma`` is its standard deviation as a fraction of each side."""

    label: ClassVar[str] = "Centre Gaussian"
    requires: ClassVar[frozenset[str]] = frozenset()
    sigma: float = 0.25

    def __post_init__(self):
        if self.sigma <= 0:
            raise ValueError(f"center: sigma must be positive, not {self.sigma}")

    def __call__(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None):
        """(B,H,W), the maximum 1 in the middle."""
        check_batch(images, targets)
        y, x = (
            torch.exp(-0.5 * (((torch.arange(n, device=images.device) + 0.5) / n - 0.5) / self.sigma) ** 2)
            for n in images.shape[-2:]
        )
        return torch.outer(y, x).expand(len(images), -1, -1).clone()


@dataclass(frozen=True)
class Random:
    """Independent uniform noise at every pixel."""

    label: ClassVar[str] = "Random"
    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None):
        """(B,H,W) in [0,1)."""
        check_batch(images, targets)
        size = images.shape[-2:]
        noise = draw(lambda g: torch.rand(size, generator=g, device=g.device), len(images), generator)
        return noise.to(images.device).clone()


@dataclass(frozen=True)
class Oracle:
    """The target's boxes: 1 inside, 0 outside."""

    label: ClassVar[str] = "Oracle (the box)"
    requires: ClassVar[frozenset[str]] = frozenset({"region"})

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        *,
        region: torch.Tensor,
    ):
        """``region`` (B,H,W) bool → float."""
        check_batch(images, targets)
        return region.to(images.dtype)
