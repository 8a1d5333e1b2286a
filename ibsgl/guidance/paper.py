"""The paper's own guidance loss: Algorithm 1, or Eq. 10 directly on the weights."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.batch import TrainingBatch
from ibsgl.guidance.localization import localization_loss
from ibsgl.guidance.settings import DivergenceSettings
from ibsgl.settings import NonNegative, Positive, PositiveReal, Settings
from ibsgl.suppression import SuppressionSettings


class PaperLoss(Settings):
    """D_KL(A ‖ A') of Eq. 11, where Algorithm 1 makes A' from A with Eq. 10; with ``end_to_end`` Eq. 10 itself.

    The teacher's map takes the place of L^ib. Without a map only the suppression term of Eq. 10 is left. The settings are those
    of ``guidance`` (:class:`ibsgl.guidance.settings.GuidanceSettings`); ``weight`` is μ.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher_map"})

    weight: NonNegative
    mode: Literal["feature", "end_to_end"]
    cross_entropy: Literal["distribution", "binary"]
    step_unit: Literal["relative", "absolute"]
    step_size: PositiveReal
    steps: Positive
    divergence: DivergenceSettings
    suppression: SuppressionSettings

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """(B,) nats."""
        if self.mode == "end_to_end":
            return localization_loss(
                batch.network.head,
                batch.features,
                batch.targets,
                batch.teacher_map,
                beta=self.suppression.beta,
                r=self.suppression.r,
                labels=batch.shown,
                when=self.suppression.when,
                form=self.cross_entropy,
            )
        moved = guidance_target(
            batch.network.head,
            batch.features,
            batch.targets,
            batch.teacher_map,
            beta=self.suppression.beta,
            r=self.suppression.r,
            step_size=self.step_size,
            steps=self.steps,
            labels=batch.shown,
            when=self.suppression.when,
            form=self.cross_entropy,
            relative=self.step_unit == "relative",
        )
        return feature_divergence(batch.features, moved, self.divergence.normalise, self.divergence.reduction)
