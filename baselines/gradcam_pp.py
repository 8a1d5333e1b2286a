"""Grad-CAM++ (Chattopadhay et al., WACV 2018): positive gradients, each weighted by its own coefficient α."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, features_and_gradient, upsample
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class GradCAMPlusPlus:
    """Grad-CAM++ at the last convolutional layer. It has no settings.

    The paper uses Y = exp(S), where S is the target's logit. So higher derivatives are powers of g = ∂S/∂A^k_ij::

        α^k_ij = g² / (2 g² + (Σ_ab A^k_ab) g³)        (Eq. 19)
        w_k    = Σ_ij α^k_ij ReLU(exp(S) g)            (Eq. 7)
        L      = ReLU(Σ_k w_k A^k)

    The factor exp(S) is left out. It is one positive number per image, so it changes no metric, and it can overflow. Only
    g > 0 counts in w_k. There α g = g / (2 + g ΣA). This form has no 0/0 at g = 0, and no cubes that vanish in float32.
    With features ≥ 0, 2 + g ΣA ≥ 2. With negative features it can be zero. Then α is undefined, and 0 is used.

    Two known implementations differ from the paper, and this one does not follow them. The authors' code divides the α of each
    channel by their sum. ``grad-cam`` adds 1e-6 to the denominator, which is more than g² if the gradients are small, as they
    are before an average pool.
    """

    label: ClassVar[str] = "Grad-CAM++"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass of the network, and the gradient of the head."""
        return Cost(pair=Passes(stem=1, head=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0. ``generator`` is not used."""
        return upsample(self.coarse(network, images, targets), images.shape[-2:])

    def coarse(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """The maps (B,h,w) at the size of A, before they are resized."""
        features, gradient = features_and_gradient(network, images, targets)
        denominator = 2 + gradient * features.sum((2, 3), keepdim=True)
        counted = (gradient > 0) & (denominator != 0)
        weights = torch.where(counted, gradient / denominator, 0).sum((2, 3), keepdim=True)
        return (weights * features).sum(1).relu()
