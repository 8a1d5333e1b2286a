"""The classification loss (Eq. 2)."""

from __future__ import annotations

import torch
from torch import nn


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, multilabel: bool) -> torch.Tensor:
    """The term of Eq. 2 for each image.

    Args:
        logits: (B,K).
        labels: (B,K) float, 1 for every class present. Without ``multilabel`` each row has a single 1.
        multilabel: binary cross-entropy, summed over the classes, instead of the softmax cross-entropy.

    Returns:
        (B,) nats, ≥ 0.
    """
    if multilabel:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    return nn.functional.cross_entropy(logits, labels, reduction="none")
