"""Right for the right reasons: no gradient of the decision outside the boxes.

Ross, Hughes, Doshi-Velez: Right for the Right Reasons: Training Differentiable Models by Constraining their Explanations.
IJCAI 2017.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from ibsgl.attribution.cost import Passes
from ibsgl.guidance.batch import TrainingBatch
from ibsgl.settings import NonNegative, Settings


class RightReasons(Settings):
    """Σ_d (A_d · ∂/∂x_d Σ_k log p_k)², summed over pixels and colours d.

    A is 1 where the image has no reason for the decision: outside the boxes of c. x is RGB in [0,1], before normalisation. The
    gradient goes through the whole network and is differentiated again.

    The paper has one decision among K classes: p = softmax, and k runs over every outcome. A multi-label network takes K
    decisions with two outcomes each, so there the sum is Σ_k [log p_k + log(1 − p_k)] with p = sigmoid.

    Published: λ₁ so that the two losses have the same order of magnitude (1000 in the authors' code, with half the sum).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"region", "image_gradient"})
    # The gradient down to the image, and the gradient of that.
    passes: ClassVar[Passes] = Passes(stem_backward=2, head_backward=2)

    weight: NonNegative = Field(1.0, description="λ₁, the factor of the loss")

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """(B,) ≥ 0."""
        assert batch.region is not None
        if batch.network.multilabel:
            outcomes = nn.functional.logsigmoid(batch.logits) + nn.functional.logsigmoid(-batch.logits)
        else:
            outcomes = batch.logits.log_softmax(1)
        gradient = torch.autograd.grad(outcomes.sum(), batch.images, create_graph=True)[0]
        return (gradient * ~batch.region[:, None]).square().sum((1, 2, 3))
