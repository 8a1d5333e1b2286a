"""How well a trained network classifies a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ibsgl.inference import predict
from ibsgl.metrics.classification import classification_metrics
from ibsgl.networks.split import SplitNetwork

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def classification_scores(
    network: SplitNetwork, data: ImageDataset, split: str, batch_size: int, device: torch.device
) -> dict[str, float]:
    """How well ``network`` classifies ``split``; see :func:`ibsgl.metrics.classification.classification_metrics`."""
    return classification_metrics(
        predict(network, data, split, batch_size, device),
        data.labels(split),
        data.index.class_names,
        multilabel=network.multilabel,
        ignored=data.difficult(split),
    )
