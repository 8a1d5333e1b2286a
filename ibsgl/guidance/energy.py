"""The Energy loss: the share of the positive attribution that lies outside the boxes.

Rao, Böhle, Parchami-Araghi, Schiele: Studying How to Efficiently and Effectively Guide Models with Explanations. ICCV 2023.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from ibsgl.attribution.cost import Passes
from ibsgl.guidance.batch import TrainingBatch
from ibsgl.networks.split import upsample
from ibsgl.saliency import class_saliency
from ibsgl.settings import NonNegative, Settings


class EnergyLoss(Settings):
    """1 − E, with E = Σ_{u in the boxes of c} S⁺(u) / Σ_u S⁺(u).

    S⁺ is the positive attribution of c at the last layer. The authors compare attributions at several layers; here it is their
    "input × gradient" at the final layer, whose positive part is L^c of Eq. 3, and it is differentiated twice. As in the
    authors' code it is enlarged bilinearly to the image, and the loss is 1 − E. E is EBPG of L^c
    (:class:`ibsgl.metrics.localization.EBPG`). A map that is zero everywhere has E = 0 and no gradient.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"region"})
    # The gradient that L^c is, and the gradient of that.
    passes: ClassVar[Passes] = Passes(head_backward=2)

    weight: NonNegative = Field(1.0, description="λ, the factor of the loss")

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """(B,) in [0,1]."""
        assert batch.region is not None
        saliency = class_saliency(batch.logits, batch.features, batch.targets, create_graph=True)
        enlarged = upsample(saliency, batch.region.shape[-2:])
        inside, total = (enlarged * batch.region).sum((1, 2)), enlarged.sum((1, 2))
        return 1 - inside / total.clamp_min(torch.finfo(total.dtype).tiny)
