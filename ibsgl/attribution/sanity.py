"""The sanity methods: a Gaussian in the middle, noise, and the boxes. They show how low and how high a value can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.attribution.cost import Cost
from ibsgl.networks.split import SplitNetwork, check_batch
from ibsgl.randomness import Generators, draw


@dataclass(frozen=True)
class Center:
    """The same Gaussian in the middle of every image.

    Args:
        sigma: standard deviation along each side, as a fraction of that side.
    """

    label: ClassVar[str] = "Centre Gaussian"
    requires: ClassVar[frozenset[str]] = frozenset()
    sigma: float = 0.25

    def __post_init__(self):
        if self.sigma <= 0:
            raise ValueError(f"center: sigma must be positive, not {self.sigma}")

    def cost(self, channels: int) -> Cost:
        """No passes: the network is not used."""
        return Cost()

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """(B,H,W) in (0,1], with the maximum in the middle."""
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

    def cost(self, channels: int) -> Cost:
        """No passes: the network is not used."""
        return Cost()

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """(B,H,W) in [0,1)."""
        check_batch(images, targets)
        size = images.shape[-2:]
        noise = draw(lambda g: torch.rand(size, generator=g, device=g.device), len(images), generator)
        return noise.to(images.device).clone()


@dataclass(frozen=True)
class Oracle:
    """The target's boxes: positive inside, 0 outside.

    Inside, values fall from 2 at the centre of the boxes to 1 at the farthest pixel. With equal values inside, a metric that
    keeps the pixels strictly above a threshold would keep none.
    """

    label: ClassVar[str] = "Oracle (the box)"
    requires: ClassVar[frozenset[str]] = frozenset({"region"})

    def cost(self, channels: int) -> Cost:
        """No passes: the network is not used."""
        return Cost()

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        *,
        region: torch.Tensor,
    ) -> torch.Tensor:
        """``region`` (B,H,W) bool → (B,H,W) in {0} ∪ [1,2]."""
        check_batch(images, targets)
        height, width = region.shape[-2:]
        inside = region.to(images.dtype)
        y = torch.arange(height, device=region.device, dtype=images.dtype)[:, None]
        x = torch.arange(width, device=region.device, dtype=images.dtype)
        area = inside.sum((1, 2), keepdim=True).clamp_min(1)
        centre_y, centre_x = ((inside * axis).sum((1, 2), keepdim=True) / area for axis in (y, x))
        distance = torch.hypot(y - centre_y, x - centre_x) * inside
        return inside * (2 - distance / distance.amax((1, 2), keepdim=True).clamp_min(1))
