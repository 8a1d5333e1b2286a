"""FullGrad (Srinivas & Fleuret, NeurIPS 2019): gradients of the input and of every bias. Their sum is the logit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias, cast

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import Normalize, SplitNetwork, check_batch, evaluating, upsample
from ibsgl.randomness import Generators

_Biased: TypeAlias = nn.modules.conv._ConvNd | nn.Linear | nn.modules.batchnorm._BatchNorm


class Decomposition(NamedTuple):
    """The full-gradient decomposition of B logits. The sum of all terms of an image is its logit."""

    input: torch.Tensor
    """∇ₓf ∘ x (B,3,H,W), where x is the normalised image."""
    biases: list[tuple[nn.Module, torch.Tensor]]
    """Layer and ∇_b f ∘ b, with the shape of the layer's output, for each layer with a bias that f depends on. The order is
    that of the forward pass."""


@dataclass(frozen=True)
class FullGrad:
    """FullGrad of the target's logit f. It has no settings.

    Take a network of piecewise linear layers (convolution, linear, batch norm, ReLU, max and average pooling). Near an image
    it is linear in its input and its biases, so::

        f(x) = ∇ₓf·x + Σ_layers Σ_places ∇_b f·b                            (Proposition 1)
        S    = ψ(∇ₓf ∘ x) + Σ_layers Σ_channels ψ(∇_b f ∘ b)                (Eq. 5)

    ψ is the absolute value, scaled to [0,1] by the minimum and maximum of each layer and image, and resized to the image
    bilinearly without aligned corners. The scaling is that of the authors' code, without the 1e-6 that it adds to each range;
    a constant becomes 0. x is the normalised image, as in the authors' code. In evaluation mode a batch norm is an affine layer
    with the bias β − γ·mean/√(variance + ε). Biases of linear layers have no place in the image. They count in
    :meth:`decompose`, and not in S.

    Biases of convolutions, linear layers and batch norms count, in any order and number of calls. With other constants (a
    normalisation that is not :class:`ibsgl.networks.Normalize`, a number added in a ``forward``), or with layers that are not
    piecewise linear, the decomposition is incomplete, but S can still be used.
    """

    label: ClassVar[str] = "FullGrad"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass, and its gradient with respect to the image."""
        return Cost(pair=Passes(stem=1, head=1, stem_backward=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0, without a unit. ``generator`` is not used."""
        terms = self.decompose(network, images, targets)
        saliency = _scaled(terms.input).sum(1)
        for layer, term in terms.biases:
            if term.ndim == 4 and not isinstance(layer, nn.Linear):
                # Upsampling is linear, so the sum over channels can come first.
                saliency += upsample(_scaled(term).sum(1), images.shape[-2:])
        return saliency

    def decompose(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> Decomposition:
        """Every term of Proposition 1 for images (B,3,H,W) and targets (B,).

        Raises:
            ValueError: a batch norm has no running statistics. Then it is not an affine layer.
        """
        check_batch(images, targets)
        biased: list[tuple[nn.Module, torch.Tensor]] = []
        # Edges instead of outputs: if a layer overwrites an output in place, the edge still has the right gradient.
        edges: list[GradientEdge] = []

        def record(layer: _Biased, _: tuple, output: torch.Tensor) -> None:
            bias = _bias(layer)
            if bias is not None and output.requires_grad:
                shaped = bias if isinstance(layer, nn.Linear) else bias.view(-1, *[1] * (output.ndim - 2))
                biased.append((layer, shaped))
                edges.append(get_gradient_edge(output))

        inputs = [images.detach().requires_grad_(True)]

        def record_input(layer: nn.Module, _: tuple, output: torch.Tensor) -> None:
            inputs.append(output)

        with evaluating(network), torch.enable_grad(), ExitStack() as hooks:
            for layer in network.modules():
                if isinstance(layer, Normalize):
                    hooks.enter_context(layer.register_forward_hook(record_input))
                elif isinstance(layer, _Biased):
                    hooks.enter_context(layer.register_forward_hook(record))
            # The sum has one logit per image, so its gradient is each image's own.
            score = network(inputs[0]).gather(1, targets[:, None]).sum()
            x = inputs[-1]
            # torch takes tensors and edges together, but its annotations do not.
            sources = cast("Sequence[torch.Tensor]", [x, *edges])
            gradients = torch.autograd.grad(score, sources, allow_unused=True)
        biases = [
            (layer, gradient * bias)
            for (layer, bias), gradient in zip(biased, gradients[1:], strict=True)
            if gradient is not None
        ]
        return Decomposition(gradients[0] * x.detach(), biases)


def _bias(layer: _Biased) -> torch.Tensor | None:
    """The constant (C,) that ``layer`` adds to each channel, or ``None``."""
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return None if layer.bias is None else layer.bias.detach()
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError("fullgrad: a batch norm without running statistics has no fixed bias; set track_running_stats")
    bias = -layer.running_mean / (layer.running_var + layer.eps).sqrt()
    return bias * layer.weight.detach() + layer.bias.detach() if layer.affine else bias


def _scaled(term: torch.Tensor) -> torch.Tensor:
    """ψ before upsampling: |term| (B,C,h,w), scaled to [0,1] over all channels and places of an image."""
    size = term.abs()
    low, high = size.amin((1, 2, 3), keepdim=True), size.amax((1, 2, 3), keepdim=True)
    return (size - low) / (high - low).clamp_min(torch.finfo(size.dtype).tiny)
