"""The losses of a training batch: classification (Eq. 2), and what guidance adds to it (Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ibsgl.guidance.batch import TrainingBatch
from ibsgl.guidance.classification import classification_loss
from ibsgl.guidance.registry import GuidanceLoss
from ibsgl.networks.split import SplitNetwork


def training_losses(
    network: SplitNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    loss: GuidanceLoss | None = None,
    *,
    teach: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
    region: torch.Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> dict[str, torch.Tensor]:
    """Losses (B,) of a batch by name: with ``loss`` its weighted sum with Eq. 2, otherwise Eq. 2. Training minimises ``loss``.

    Args:
        network: the network in training.
        images: (B,3,H,W).
        labels: (B,K) float, 1 for every class present.
        targets: (B,) int64, the class c of each (image, class) pair.
        loss: what guidance adds; ``None``: nothing.
        teach: detached features (B,C,h,w) → the teacher's map (B,h,w), or ``None``. It is called if ``loss`` requires a map.
        region: (B,H,W) bool, the boxes of c. The loss gets them if it requires them.
        generators: one per pair. The loss gets them if it requires them.

    Raises:
        ValueError: the loss does not give one value per pair, or has no gradient.
    """
    requires = frozenset() if loss is None else loss.requires
    if "image_gradient" in requires:
        images = images.detach().requires_grad_(True)
    features = network.stem(images)
    if loss is not None and not features.requires_grad:
        # The stem has no weights to train, and L^c is a gradient with respect to the features.
        features = features.detach().requires_grad_(True)
    logits = network.head(features)
    classification = classification_loss(logits, labels, network.multilabel)
    if loss is None:
        return {"loss": classification, "classification": classification}
    added = loss(
        TrainingBatch(
            network,
            images,
            features,
            logits,
            labels,
            targets,
            teacher_map=teach(features.detach()) if teach is not None and "teacher_map" in requires else None,
            region=region if "region" in requires else None,
            generators=generators if "generators" in requires else None,
        )
    )
    if added.shape != classification.shape:
        raise ValueError(
            f"guidance.loss: {type(loss).__name__} gives the shape {tuple(added.shape)}; it must give one value per pair, "
            f"{tuple(classification.shape)}"
        )
    if not added.requires_grad:
        raise ValueError(
            f"guidance.loss: {type(loss).__name__} has no gradient, so it would change nothing; compute gradients inside it "
            "with create_graph=True"
        )
    return {"loss": classification + loss.weight * added, "classification": classification, "guidance": added}
