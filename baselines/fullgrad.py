"""FullGrad (Srinivas & Fleuret, NeurIPS 2019): gradients of the input and of every bias, which add up to the logit."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from ibsgl.network import Normalize, SplitNetwork, check_batch, evaluating, upsample
from ibsgl.passes import Cost, Passes
from ibsgl.randomness import Generators


class Decomposition(NamedTuple):
    """The full-gradient decomposition of B logits; over all terms of an image it adds up to the logit."""

    input: torch.Tensor
    """∇ₓf ∘ x (B,3,H,W), with x the normalised image."""
    biases: list[tuple[nn.Module, torch.Tensor]]
    """Layer and ∇_b f ∘ b, as large as its output, for each biased layer that f depends on, in the order of running."""


@dataclass(frozen=True)
class FullGrad:
    """FullGrad of the target's logit f; it has no settings.

    A network of piecewise linear layers (convolution, linear, batch norm, ReLU, max and average pooling) is, around an
    image, linear in its input and its biases, hence::

        f(x) = ∇ₓf·x + Σ_layers Σ_places ∇_b f·b                            (Proposition 1)
        S    = ψ(∇ₓf ∘ x) + Σ_layers Σ_channels ψ(∇_b f ∘ b)                (Eq. 5)

    with ψ the absolute value, scaled to [0,1] by the minimum and maximum of each layer and image (its authors' code;
    what is constant becomes 0, without the 1e-6 that the code adds to each range), and brought to image size bilinearly,
    corners not aligned. x is the normalised image, as in the authors'
    code. The bias of a batch norm is β − γ·mean/√(variance + ε), for it evaluates as an affine layer. Biases of linear
    layers have no place in the image: they count in :meth:`decompose`, not in S.

    Biases are found in convolutions, linear layers and batch norms, however often and in whatever order they run. Other
    constants (a normalisation that is not :class:`ibsgl.network.Normalize`, a number added in a ``forward``) and layers
    that are not piecewise linear leave S meaningful but the decomposition incomplete.
    """

    label: ClassVar[str] = "FullGrad"
    requires: ClassVar[frozenset[str]] = frozenset()

    def cost(self, channels: int) -> Cost:
        """One pass and its gradient, to the image."""
        return Cost(pair=Passes(stem=1, head=1, stem_backward=1, head_backward=1))

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0, without unit; ``generator`` is not used."""
        terms = self.decompose(network, images, targets)
        saliency = _scaled(terms.input).sum(1)
        for layer, term in terms.biases:
            if term.ndim == 4 and not isinstance(layer, nn.Linear):
                # Upsampling is linear: the sum over channels may come first.
                saliency += upsample(_scaled(term).sum(1), images.shape[-2:])
        return saliency

    def decompose(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> Decomposition:
        """Every term of Proposition 1 for images (B,3,H,W) and targets (B,).

        Raises ``ValueError`` for a batch norm without running statistics, which is not an affine layer.
        """
        check_batch(images, targets)
        ran: list[tuple[nn.Module, torch.Tensor]] = []
        # Edges, not outputs: an output that the network later overwrites in place keeps its own gradient.
        edges = []

        def note(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            bias = _bias(layer)
            if bias is not None and output.requires_grad:
                ran.append((layer, bias if isinstance(layer, nn.Linear) else bias.view(-1, *[1] * (output.ndim - 2))))
                edges.append(get_gradient_edge(output))

        inputs = [images.detach().requires_grad_(True)]

        def note_input(layer: nn.Module, _: tuple, output: torch.Tensor) -> None:
            inputs.append(output)

        with evaluating(network), torch.enable_grad(), ExitStack() as hooks:
            for layer in network.modules():
                if isinstance(layer, Normalize):
                    hooks.enter_context(layer.register_forward_hook(note_input))
                elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)):
                    hooks.enter_context(layer.register_forward_hook(note))
            # One logit an image, so the sum's gradient is each image's own.
            score = network(inputs[0]).gather(1, targets[:, None]).sum()
            x = inputs[-1]
            gradients = torch.autograd.grad(score, [x, *edges], allow_unused=True)
        biases = [
            (layer, gradient * bias)
            for (layer, bias), gradient in zip(ran, gradients[1:], strict=True)
            if gradient is not None
        ]
        return Decomposition(gradients[0] * x.detach(), biases)


def _bias(layer: nn.Module) -> torch.Tensor | None:
    """What ``layer`` adds to each channel whatever its input, (C,), or None."""
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return None if layer.bias is None else layer.bias.detach()
    if layer.running_mean is None:
        raise ValueError("fullgrad: a batch norm without running statistics has no fixed bias; set track_running_stats")
    bias = -layer.running_mean / (layer.running_var + layer.eps).sqrt()
    return bias * layer.weight.detach() + layer.bias.detach() if layer.affine else bias


def _scaled(term: torch.Tensor) -> torch.Tensor:
    """ψ before upsampling: |term| (B,C,h,w) scaled to [0,1] over all of an image's channels and places."""
    size = term.abs()
    low, high = size.amin((1, 2, 3), keepdim=True), size.amax((1, 2, 3), keepdim=True)
    return (size - low) / (high - low).clamp_min(torch.finfo(size.dtype).tiny)
