"""The training loop, with a checkpoint after every epoch.

A training that was interrupted continues from its checkpoint. On a CPU the result is bit for bit that of a training without an
interruption, because the order of the images and dropout are seeded anew in every epoch, by the epoch's number.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from ibsgl.errors import TrainingError
from ibsgl.files import read_tensors
from ibsgl.inference import predict
from ibsgl.metrics.classification import classification_score
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import derive_seed, generator
from ibsgl.seals import intact, save_tensors
from ibsgl.training.settings import TrainingSettings

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def check_labels(data: ImageDataset, multilabel: bool) -> None:
    """Raise ``ValueError`` if an image shows several classes and the network is not multi-label."""
    if multilabel:
        return
    for split in ("train", "held_out", "test"):
        several = int((data.labels(split).sum(1) > 1).sum())
        if several:
            raise ValueError(f"data.multilabel: {several} {split} images show several classes; set it to true")


def _optimizer(
    network: nn.Module, training: TrainingSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    if training.schedule == "one_cycle":
        # By default the schedule would also change the momentum, and the configured one would not be used.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=training.lr, total_steps=steps, cycle_momentum=False
        )
        return optimizer, schedule
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def run_epochs(
    network: SplitNetwork,
    data: ImageDataset,
    ids: Sequence[str],
    compute_losses: Callable[[int, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    training: TrainingSettings,
    *,
    name: str,
    stream: str,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    digest: str,
    evaluate: Callable[[], dict[str, float]],
    train_mode: bool,
) -> list[dict[str, float]]:
    """Train ``network`` in place and return one row of metrics per epoch.

    Args:
        network: the network.
        data: at the network's input size.
        ids: the image id of every training example. An image with several classes may be in it several times.
        compute_losses: (epoch from 1, indices (B,) into ``ids``, images (B,3,H,W)) → losses (B,) of the examples by name.
            Training minimises ``"loss"``. The others are only recorded.
        training: optimiser and schedule.
        name: the training's name (``resnet classifier``), for the progress bar and for messages.
        stream: the seeds of the epochs are derived from ``seed`` and this name. Trainings with the same name have the same
            order of examples.
        seed: root seed.
        device: where the network is.
        checkpoint: the file in which every epoch is stored.
        digest: digest of all that the result depends on. A checkpoint with another digest is ignored.
        evaluate: called after every epoch. Its metrics are added to the row.
        train_mode: whether batch norm and dropout are in training mode. Otherwise batch norm's statistics stay as they are,
            and there is no dropout.

    Raises:
        TrainingError: the loss is not finite.
    """
    if not training.epochs:
        return []
    per_epoch = math.ceil(len(ids) / training.batch_size)
    optimizer, scheduler = _optimizer(network, training, per_epoch * training.epochs)
    history: list[dict[str, float]] = []
    if checkpoint.exists() and not intact(checkpoint):
        log.warning("%s has changed since it was written; %s starts again", checkpoint, name)
    elif checkpoint.exists():
        state = read_tensors(checkpoint)
        if state["digest"] == digest:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            history = state["history"]
    with tqdm(
        total=per_epoch * training.epochs, initial=per_epoch * len(history), desc=name, unit="batch", disable=None
    ) as bar:
        for epoch in range(len(history) + 1, training.epochs + 1):
            torch.manual_seed(derive_seed(seed, stream, "dropout", epoch))
            order = torch.randperm(len(ids), generator=generator(seed, stream, "order", epoch))
            totals: dict[str, torch.Tensor] = {}
            network.train(train_mode)
            batches = data.batches([ids[i] for i in order], training.batch_size)
            for indices, (_, images) in zip(order.split(training.batch_size), batches, strict=True):
                losses = compute_losses(epoch, indices, images.to(device))
                loss = losses["loss"].mean()
                if not loss.isfinite():
                    raise TrainingError(
                        f"{name}: the loss became {loss.item()} in epoch {epoch}; lower the learning rate "
                        f"(now {training.lr:g}), or the weight of guidance if there is any"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0) + value.detach().double().sum()
                bar.update()
            row = {"epoch": epoch} | {key: value.item() / len(ids) for key, value in totals.items()} | evaluate()
            history.append(row)
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "epoch"})
            state = {
                "digest": digest,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "history": history,
            }
            save_tensors(checkpoint, state)
    return history


def held_out_score(
    network: SplitNetwork, data: ImageDataset, batch_size: int, device: torch.device
) -> tuple[str, float]:
    """Name and value, in [0,1], of the score on the held-out images: ``accuracy``, or ``map`` if ``network`` is multi-label."""
    logits = predict(network, data, "held_out", batch_size, device)
    return classification_score(logits, data.labels("held_out"), network.multilabel)
