"""Gradient saliency of the last convolutional feature map (Eq. 3). It needs only the head.

L^c = ReLU(Σ_k ∂y^c/∂A^k · A^k), with an elementwise product. In the literature this is HiResCAM. If the head is a global
average pool and a linear layer, it equals Grad-CAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ibsgl.attribution.cost import Cost, Passes
from ibsgl.networks.gradients import feature_gradient, features_and_gradient, logit_gradient
from ibsgl.networks.split import SplitNetwork, upsample
from ibsgl.randomness import Generators


def _rectified_sum(features: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return (gradient * features).sum(1).relu()


def gradient_saliency(
    head: nn.Module, features: torch.Tensor, target: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """Eq. 3: features A (B,C,h,w) and target (B,) → L^c (B,h,w) ≥ 0.

    With ``create_graph`` the result can be differentiated with respect to ``features`` and the head's parameters. Without it,
    the result is detached.
    """
    with torch.enable_grad():
        if not features.requires_grad:
            features = features.detach().requires_grad_(True)
        saliency = _rectified_sum(features, feature_gradient(head, features, target, create_graph))
    return saliency if create_graph else saliency.detach()


def class_saliency(
    logits: torch.Tensor, features: torch.Tensor, target: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """As :func:`gradient_saliency`, from logits (B,K) that the head has already computed from ``features`` with a graph.

    The graph is kept, so the same logits can be used for several targets.
    """
    gradient = logit_gradient(logits, features, target, create_graph, retain_graph=True)
    saliency = _rectified_sum(features, gradient)
    return saliency if create_graph else saliency.detach()


@dataclass(frozen=True)
class Gradient:
    """Eq. 3 as a saliency method. On a guided network it is the paper's own method."""

    label: ClassVar[str] = "Eq. 3 (HiResCAM)"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass of the stem; the gradient goes through the head alone."""
        return Cost(pair=Passes(stem=1, head=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """(B,H,W) in units of the logit, ≥ 0."""
        return upsample(self.coarse(network, images, targets), images.shape[-2:])

    def coarse(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """L^c (B,h,w) at the size of the feature map."""
        return _rectified_sum(*features_and_gradient(network, images, targets))
