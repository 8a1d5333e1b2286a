"""Integrated Gradients (Sundararajan et al., ICML 2017): gradients along the straight line from a black image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, check_batch, chunked, evaluating, input_gradient
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class IntegratedGradients:
    """Integrated Gradients of the target's logit f from the black image x⁰ = 0, by Gauss–Legendre quadrature::

        a_i = (x_i − x⁰_i) ∫₀¹ ∂f/∂x_i (x⁰ + t (x − x⁰)) dt        (Eq. 1)

    The map is the absolute value of the sum over the colours.

    Args:
        steps: quadrature nodes t (published: 50).
        chunk: images per pass. It limits the memory and changes results only by rounding.
    """

    label: ClassVar[str] = "Integrated Gradients"
    requires: ClassVar[frozenset[str]] = frozenset()
    steps: int = 50
    chunk: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"integrated_gradients: steps must be at least 1, not {self.steps}")
        if self.chunk < 1:
            raise ValueError(f"integrated_gradients: chunk must be at least 1, not {self.chunk}")

    def cost(self, channels: int) -> Cost:
        """One pass and its gradient at every node."""
        return Cost(pair=Passes(stem=1, head=1, stem_backward=1, head_backward=1) * self.steps, mixed=True)

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → |Σ_colour a| (B,H,W) in units of the logit. ``generator`` is not used."""
        return self.attributions(network, images, targets).sum(1).abs()

    def attributions(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Signed attributions a (B,3,H,W). Their sum over an image is f(x) − f(0), up to the error of the quadrature."""
        check_batch(images, targets)
        # Nodes and weights for an integral from −1 to 1.
        symmetric_nodes, symmetric_weights = np.polynomial.legendre.leggauss(self.steps)
        nodes = torch.as_tensor((symmetric_nodes + 1) / 2).to(images)
        weights = torch.as_tensor(symmetric_weights / 2).to(images)
        parts = []
        with evaluating(network), torch.no_grad():
            for block, target in zip(images.detach().split(self.chunk), targets.split(self.chunk), strict=True):
                run = partial(_weighted_gradients, network, block, target, nodes, weights)
                mean = torch.zeros_like(block)
                for part in chunked(run, self.steps, max(1, self.chunk // len(block)), images.device):
                    mean += part
                parts.append(block * mean)
        return torch.cat(parts)


def _weighted_gradients(
    network: SplitNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    nodes: torch.Tensor,
    weights: torch.Tensor,
    start: int,
    stop: int,
) -> torch.Tensor:
    """Σ_s w_s ∇f(t_s x) (b,3,H,W) over the nodes from ``start`` to ``stop``."""
    t, weight = nodes[start:stop], weights[start:stop]
    gradient = input_gradient(network, (t.view(-1, 1, 1, 1, 1) * images).flatten(0, 1), targets.repeat(len(t)))
    return torch.einsum("s,sbchw->bchw", weight, gradient.unflatten(0, (len(t), len(images))))
