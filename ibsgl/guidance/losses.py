"""The losses of a training batch: Eq. 2, or Eq. 11 if the training is guided."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.classification import classification_loss
from ibsgl.guidance.localization import localization_loss
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.networks.split import SplitNetwork, autocast
from ibsgl.suppression import SuppressionSettings


def training_losses(
    network: SplitNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    l_ib: Callable[[torch.Tensor], torch.Tensor | None],
    guidance: GuidanceSettings | None = None,
    suppression: SuppressionSettings | None = None,
) -> dict[str, torch.Tensor]:
    """Losses (B,) of a batch by name: Eq. 11 with ``guidance``, Eq. 2 without. Training minimises ``loss``.

    Args:
        network: the network in training.
        images: (B,3,H,W).
        labels: (B,K) float, 1 for every class present.
        target: (B,) int64, the class c of each (image, class) pair.
        l_ib: features (B,C,h,w) → the teacher's map (B,h,w), or ``None`` without one. It is not called without guidance.
        guidance: the settings of guidance. ``None`` or the loss ``none``: Eq. 2 alone.
        suppression: the settings of suppression, which guidance needs.
    """
    with autocast(images.device):
        features = network.stem(images)
    # The inner problem has second derivatives and compares distributions, so it runs in float32.
    features = features.float()
    classification = classification_loss(network.head(features), labels, network.multilabel)
    if guidance is None or guidance.loss == "none":
        return {"loss": classification, "classification": classification}
    if suppression is None:
        raise ValueError("guidance needs the settings of suppression")
    reference = l_ib(features)
    present = labels.bool() if network.multilabel else None
    if guidance.mode == "end_to_end":
        added = localization_loss(
            network.head,
            features,
            target,
            reference,
            beta=suppression.beta,
            r=suppression.r,
            labels=present,
            when=suppression.when,
            form=guidance.cross_entropy,
        )
    else:
        moved = guidance_target(
            network.head,
            features,
            target,
            reference,
            beta=suppression.beta,
            r=suppression.r,
            step_size=guidance.step_size,
            steps=guidance.steps,
            labels=present,
            when=suppression.when,
            form=guidance.cross_entropy,
            relative=guidance.step_unit == "relative",
        )
        added = feature_divergence(features, moved, guidance.divergence.normalise, guidance.divergence.reduction)
    return {"loss": classification + guidance.mu * added, "classification": classification, "guidance": added}
