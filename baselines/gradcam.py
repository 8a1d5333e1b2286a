"""Grad-CAM (Selvaraju et al., ICCV 2017): feature channels weighted by the mean gradient of the target's logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, features_and_gradient, upsample
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class GradCAM:
    """Grad-CAM at the last convolutional layer. It has no settings.

    A is ``network.stem(images)``, and y^c is the target's logit (before the softmax, as in the paper)::

        α_k = 1/(h·w) Σ_ij ∂y^c/∂A^k_ij        (Eq. 1)
        L   = ReLU(Σ_k α_k A^k)                (Eq. 2)

    L is resized to the image bilinearly. The gradient goes through the head alone.
    """

    label: ClassVar[str] = "Grad-CAM"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass of the network, and the gradient of the head."""
        return Cost(pair=Passes(stem=1, head=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0 in units of the logit. ``generator`` is not used."""
        return upsample(self.coarse(network, images, targets), images.shape[-2:])

    def coarse(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """The maps (B,h,w) at the size of A, before they are resized."""
        features, gradient = features_and_gradient(network, images, targets)
        weights = gradient.mean((2, 3), keepdim=True)
        return (weights * features).sum(1).relu()
