"""What a guidance loss gets: one batch of training, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ibsgl.networks.split import SplitNetwork


@dataclass(frozen=True)
class TrainingBatch:
    """One batch of (image, class) pairs in training, with what has been computed of it already.

    The stem runs once per image in a training step. So a loss gets the features and the logits of that pass, with their graph,
    and does not run the network on the images again.

    Attributes:
        network: in evaluation mode. Its weights are trained.
        images: (B,3,H,W) RGB in [0,1]. They require a gradient if the loss requires ``image_gradient``.
        features: A = stem(images), (B,C,h,w) float32, with its graph.
        logits: head(A), (B,K) float32, with its graph.
        labels: (B,K) float, 1 for every class that the image shows.
        targets: c (B,) int64, the class of each pair.
        teacher_map: (B,h,w) ≥ 0, detached, if the loss requires ``teacher_map``. ``None`` with the teacher ``none``.
        region: (B,H,W) bool, the boxes of c, if the loss requires ``region``.
        generators: one generator per pair, if the loss requires ``generators``. They are seeded by the training seed, the
            epoch, the image and the class, so a pair's draw does not depend on the batch.
    """

    network: SplitNetwork
    images: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    teacher_map: torch.Tensor | None = None
    region: torch.Tensor | None = None
    generators: Sequence[torch.Generator] | None = None

    @property
    def shown(self) -> torch.Tensor | None:
        """The classes (B,K) bool that each image shows, on a multi-label network. Otherwise ``None``: c alone."""
        return self.labels.bool() if self.network.multilabel else None
