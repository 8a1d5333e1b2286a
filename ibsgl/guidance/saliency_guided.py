"""Saliency-guided training: the output stays the same where pixels of low gradient are replaced.

Ismail, Corrada Bravo, Feizi: Improving Deep Learning Interpretability by Saliency Guided Training. NeurIPS 2021.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ibsgl.attribution.cost import Passes
from ibsgl.guidance.batch import TrainingBatch
from ibsgl.networks.gradients import logit_gradient
from ibsgl.randomness import Generators, draw
from ibsgl.settings import Fraction, NonNegative, Settings


def masked_images(
    images: torch.Tensor, gradient: torch.Tensor, k: float, order: str, generators: Generators
) -> torch.Tensor:
    """x̃: ``images`` with the ⌊k·H·W⌋ pixels of the lowest gradient replaced by random colours.

    Args:
        images: (B,3,H,W).
        gradient: (B,3,H,W). Its mean over the colours orders the pixels; of equal ones, the first in row-major order come
            first.
        k: the fraction of the pixels, in (0,1].
        order: ``magnitude`` or ``signed``.
        generators: see :func:`ibsgl.randomness.draw`.

    Returns:
        (B,3,H,W), detached. Each colour of a replaced pixel is uniform between that colour's minimum and maximum in the image.
    """
    images = images.detach()
    score = gradient.mean(1).flatten(1)
    score = score.abs() if order == "magnitude" else score
    # The product has a rounding error: 0.29 · 100 = 28.999999999999996 would become 28 pixels.
    lowest = score.argsort(dim=1, stable=True)[:, : int(round(k * score.shape[1], 9))]
    mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, lowest, True).view(len(images), 1, *images.shape[2:])
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    uniform = draw(lambda g: torch.rand(images.shape[1:], generator=g, device=g.device), len(images), generators)
    return torch.where(mask, low + (high - low) * uniform.to(images), images)


class SaliencyGuided(Settings):
    """D_KL(f(x) ‖ f(x̃)), where x̃ is x without the pixels of low gradient ∂y^c/∂x (:func:`masked_images`).

    f is the network's distribution over the classes: softmax, and Σ_k p_k (log p_k − log p̃_k). On a multi-label network it is
    the sum over the K decisions, each a distribution over yes and no. Both passes are differentiated in the weights, x̃ is not.
    The authors' code orders the pixels by the signed gradient by default (``order``); their text masks small
    gradients. Published: λ = 1, and k = 0.5 for images of digits.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"image_gradient", "generators"})
    # The gradient down to the image; and the pass of the masked images, forward and backward.
    passes: ClassVar[Passes] = Passes(stem=1, head=1, stem_backward=2, head_backward=2)

    weight: NonNegative = Field(1.0, description="λ, the factor of the loss (published: 1)")
    k: Fraction = Field(0.5, description="the fraction of the pixels that are replaced (published: 0.5 for digits)")
    order: Literal["magnitude", "signed"] = Field(
        "magnitude", description="which gradients are low: those of small magnitude, or the most negative ones"
    )

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """(B,) nats, ≥ 0."""
        gradient = logit_gradient(batch.logits, batch.images, batch.targets, retain_graph=True)
        masked = batch.network(masked_images(batch.images, gradient, self.k, self.order, batch.generators))
        if not batch.network.multilabel:
            return _divergence(batch.logits.log_softmax(1), masked.log_softmax(1))
        yes_no = (torch.stack([logits, -logits], -1) for logits in (batch.logits, masked))
        return _divergence(*map(nn.functional.logsigmoid, yes_no)).sum(1)


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
