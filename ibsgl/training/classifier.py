"""Training of the classifier, which gives the pretrained variant (Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ibsgl.errors import TrainingError
from ibsgl.guidance.classification import classification_loss
from ibsgl.inference import predict
from ibsgl.networks.registry import NetworkSettings
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import derive_seed
from ibsgl.training.epochs import check_labels, held_out_score, run_epochs
from ibsgl.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def starting_network(
    settings: NetworkSettings, class_names: Sequence[str], *, model: str, seed: int, epochs: int
) -> SplitNetwork:
    """The network before its training as a classifier. Random weights are drawn from a seed of the model's name.

    Args:
        settings: of the network.
        class_names: the K classes, in the order of the logits.
        model: the network's name in the config.
        seed: the root seed.
        epochs: of the training. Without any, weights of another number of classes are an error.

    Raises:
        ValueError: the weights or the classes do not fit.
    """
    settings.family.check_classes(class_names)
    torch.manual_seed(derive_seed(seed, model, "initialisation"))
    return settings.build(len(class_names), new_classes=epochs > 0)


def train_classifier(
    network: SplitNetwork,
    data: ImageDataset,
    training: TrainingSettings,
    *,
    name: str,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, float]]:
    """Train ``network`` on the train split (Eq. 2). With 0 epochs it stays as it is.

    Args:
        network: trained in place.
        data: at the network's input size.
        training: optimiser and schedule.
        name, seed, device, checkpoint, digest: see :func:`ibsgl.training.epochs.run_epochs`.

    Returns:
        the history, one row per epoch.

    Raises:
        TrainingError: the loss is not finite, or the logits of all held-out images are the same or not finite.
    """
    check_labels(data, network.multilabel)
    network.to(device)
    labels = data.labels("train").to(device)

    def losses(epoch: int, indices: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = network(images)
        return {"loss": classification_loss(logits, labels[indices.to(device)], network.multilabel)}

    def evaluate() -> dict[str, float]:
        key, value = held_out_score(network, data, training.batch_size, device)
        return {f"held_out_{key}": value}

    ids = data.ids("train")
    history = run_epochs(
        network,
        data,
        ids,
        losses,
        training,
        name=name,
        stream="classifier",
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        digest=digest,
        evaluate=evaluate,
        train_mode=True,
    )
    logits = predict(network, data, "held_out", training.batch_size, device)
    same = len(logits) > 1 and torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)
    if same or not logits.isfinite().all():
        remedy = f"lower classifier.lr (now {training.lr:g})" if training.epochs else "check its weights"
        raise TrainingError(
            f"{name}: the network has collapsed: the logits of all held-out images are the same, or not finite; {remedy}"
        )
    return history
