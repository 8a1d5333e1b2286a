"""Grad-CAM++ (Chattopadhay et al., WACV 2018): positive gradients, each weighted by its own coefficient α."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.network import SplitNetwork, features_and_gradient, upsample
from ibsgl.passes import Cost, Passes
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class GradCAMPlusPlus:
    """Grad-CAM++ at the last convolutional layer; it has no settings.

    The paper takes Y = exp(S) of the target's logit S, so that the higher derivatives are powers of g = ∂S/∂A^k_ij::

        α^k_ij = g² / (2 g² + (Σ_ab A^k_ab) g³)        (Eq. 19)
        w_k    = Σ_ij α^k_ij ReLU(exp(S) g)            (Eq. 7)
        L      = ReLU(Σ_k w_k A^k)

    The factor exp(S) is one positive number an image, which no metric sees and which overflows; it is left out. Only
    g > 0 counts in w_k, where α g = g / (2 + g ΣA): this form has no 0/0 at g = 0 and no cubes that vanish in float32.
    On rectified features 2 + g ΣA ≥ 2; on signed ones it can be zero, α is then undefined and taken as 0.

    Two departures of known code are not followed, for they are not in the paper: its authors' code divides the α of
    each channel by their sum, and ``grad-cam`` adds 1e-6 to the denominator, which outweighs g² where the gradients are
    small, as they are behind an average pool.
    """

    label: ClassVar[str] = "Grad-CAM++"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass of the stem; the gradient goes through the head alone."""
        return Cost(pair=Passes(stem=1, head=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0; ``generator`` is not used."""
        features, gradient = features_and_gradient(network, images, targets)
        denominator = 2 + gradient * features.sum((2, 3), keepdim=True)
        counted = (gradient > 0) & (denominator != 0)
        weights = torch.where(counted, gradient / denominator, 0).sum((2, 3), keepdim=True)
        return upsample((weights * features).sum(1).relu(), images.shape[-2:])
