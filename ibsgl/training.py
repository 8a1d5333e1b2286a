"""Training: the classifier, and from it the guided network and its unguided control (Eq. 2, Eq. 11, Algorithm 1).

Every epoch ends in a checkpoint beside the output; an interrupted training resumes from it and, on CPU, ends bit for bit where
an undisturbed one would, because nothing random outlives an epoch: the order of the images and any dropout are seeded by the
epoch's number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from ibsgl.bottleneck import FeatureStatistics, bottleneck_saliency
from ibsgl.config import Bottleneck, Guidance, Suppression, Training
from ibsgl.guidance import feature_divergence, guidance_target, localization_loss
from ibsgl.metrics.classification import classification_score
from ibsgl.network import SplitNetwork, autocast, in_pieces
from ibsgl.randomness import derive_seed, generator

if TYPE_CHECKING:
    from ibsgl.data.loading import VOCData

# A guided network that has lost this much of its score is not the same classifier any more.
COLLAPSE = 0.25


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and which setting to change."""


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, multilabel: bool) -> torch.Tensor:
    """Eq. 2's summand (B,): softmax cross-entropy of a one-hot row, or binary cross-entropy summed over the classes."""
    if multilabel:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def check_labels(data: VOCData, multilabel: bool) -> None:
    """Raise ``ValueError`` where images show several classes and the network is to choose one."""
    if multilabel:
        return
    for split in ("train", "held_out", "test"):
        several = int((data.labels(split).sum(1) > 1).sum())
        if several:
            raise ValueError(f"data.multilabel: {several} {split} images show several classes; set it to true")


def predict(network: SplitNetwork, data: VOCData, split: str, batch_size: int, device: torch.device) -> torch.Tensor:
    """Logits (N,K) on the CPU for every image of ``split``, in evaluation mode."""
    network.eval()
    with torch.inference_mode(), autocast(device):
        logits = [
            in_pieces(network, images.to(device)).float().cpu()
            for _, images in data.batches(data.ids(split), batch_size)
        ]
    return torch.cat(logits)


def feature_statistics(
    network: SplitNetwork, data: VOCData, batch_size: int, device: torch.device
) -> FeatureStatistics:
    """μ_A and σ_A over the training images (Section 3.2), one stem pass each."""
    network.eval()
    statistics = FeatureStatistics()
    ids = data.ids("train")
    with torch.inference_mode(), tqdm(total=len(ids), desc="feature statistics", unit="image", disable=None) as bar:
        for batch_ids, images in data.batches(ids, batch_size):
            statistics.update(in_pieces(network.stem, images.to(device)))
            bar.update(len(batch_ids))
    return statistics.to("cpu")


def _optimizer(network: nn.Module, training: Training, steps: int):
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    if training.schedule == "one_cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=training.lr, total_steps=steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _save(state: dict, path: Path) -> None:
    # The process's own name: a job orphaned by a kill may still be writing beside the one that took its place.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def run_epochs(
    network: SplitNetwork,
    data: VOCData,
    ids: Sequence[str],
    loss_of: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    training: Training,
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
        ids: the image id of every training example; an image with several classes may appear several times.
        loss_of: (indices (B,) into ``ids``, images (B,3,H,W)) → per-example losses (B,) by name; ``"loss"`` is minimised,
            the others are only recorded.
        name: of the training, for the progress bar and for messages (``resnet classifier``).
        stream: name under which the epochs' seeds are derived from ``seed``; trainings that share it see the same order.
        checkpoint: where each epoch is kept until the training is over.
        digest: of everything that the result depends on; a checkpoint of another digest is ignored.
        evaluate: called after every epoch; its metrics join the row.
        train_mode: training mode of batch norm and dropout; otherwise their statistics stay frozen.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    if not training.epochs:
        return []
    per_epoch = math.ceil(len(ids) / training.batch_size)
    optimizer, scheduler = _optimizer(network, training, per_epoch * training.epochs)
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
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
                losses = loss_of(indices, images.to(device))
                loss = losses["loss"].mean()
                if not loss.isfinite():
                    raise TrainingError(
                        f"{name}: the loss became {loss.item()} in epoch {epoch}; lower the learning rate "
                        f"(now {training.lr:g}) or the weight of the added terms"
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
            _save(
                {
                    "digest": digest,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "history": history,
                },
                checkpoint,
            )
    return history


def _held_out_score(network: SplitNetwork, data: VOCData, batch_size: int, device: torch.device) -> tuple[str, float]:
    logits = predict(network, data, "held_out", batch_size, device)
    return classification_score(logits, data.labels("held_out"), network.multilabel)


def train_classifier(
    network: SplitNetwork,
    data: VOCData,
    training: Training,
    *,
    name: str,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, float]]:
    """Train ``network`` on the train split (Eq. 2), or with no epochs leave it as it is; returns the history.

    Raises:
        TrainingError: the loss is no longer a number, or the network says the same of every held-out image.
    """
    check_labels(data, network.multilabel)
    network.to(device)
    labels = data.labels("train").to(device)

    def loss_of(indices: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast(device):
            logits = network(images)
        return {"loss": classification_loss(logits.float(), labels[indices.to(device)], network.multilabel)}

    def evaluate() -> dict[str, float]:
        key, value = _held_out_score(network, data, training.batch_size, device)
        return {f"held_out_{key}": value}

    ids = data.ids("train")
    history = run_epochs(
        network,
        data,
        ids,
        loss_of,
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
            f"{name}: the network collapsed, every held-out image has the same logits, or none that is a number; {remedy}"
        )
    return history


def guided_losses(
    network: SplitNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    l_ib: Callable[[torch.Tensor], torch.Tensor],
    guidance: Guidance | None,
    suppression: Suppression | None,
) -> dict[str, torch.Tensor]:
    """Eq. 11 of a batch, or of the control where ``guidance`` is None: losses (B,) by name, ``loss`` to be minimised.

    Args:
        images: (B,3,H,W).
        labels: (B,K) float, 1 for every class present.
        target: (B,) the class that each image stands for here.
        l_ib: features (B,C,h,w) → L^ib (B,h,w); not called without guidance.
    """
    with autocast(images.device):
        features = network.stem(images)
    # The inner problem differentiates twice and compares distributions: float32 throughout.
    features = features.float()
    classification = classification_loss(network.head(features), labels, network.multilabel)
    if guidance is None:
        return {"loss": classification, "classification": classification}
    reference = l_ib(features)
    shared = {
        "beta": suppression.beta,
        "r": suppression.r,
        "when": suppression.when,
        "form": guidance.cross_entropy,
        "labels": labels.bool() if network.multilabel else None,
    }
    if guidance.mode == "end_to_end":
        added = localization_loss(network.head, features, target, reference, **shared)
    else:
        moved = guidance_target(
            network.head,
            features,
            target,
            reference,
            step_size=guidance.step_size,
            steps=guidance.steps,
            relative=guidance.step == "relative",
            **shared,
        )
        added = feature_divergence(features, moved, guidance.divergence.normalise, guidance.divergence.reduction)
    return {"loss": classification + guidance.mu * added, "classification": classification, "guidance": added}


def train_guided(
    network: SplitNetwork,
    data: VOCData,
    training: Training,
    *,
    guidance: Guidance | None,
    suppression: Suppression | None,
    l_ib: torch.Tensor | None,
    bottleneck: Bottleneck | None = None,
    statistics: FeatureStatistics | None = None,
    name: str,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, float]]:
    """Continue the training of ``network`` with Algorithm 1, or without guidance (the control) where ``guidance`` is None.

    Both see the same (image, class) pairs in the same order, with batch-norm statistics frozen and dropout off, and differ in
    nothing but the added term.

    Args:
        l_ib: (N,h,w) bottleneck maps of the train split's pairs, in the index's order; ``None`` for the control and where
            ``guidance.bottleneck_network`` is ``current``, which needs ``bottleneck`` and ``statistics`` instead.

    Raises:
        TrainingError: the loss is no longer a number, or the held-out score fell by more than a quarter of its full scale.
    """
    check_labels(data, network.multilabel)
    network.to(device)
    pairs = data.pairs("train")
    image_ids = list(pairs["image_id"])
    row_of = {image_id: row for row, image_id in enumerate(data.ids("train"))}
    labels = data.labels("train")[[row_of[image_id] for image_id in image_ids]].to(device)
    targets = torch.tensor(pairs["target"].to_numpy(), device=device)
    statistics = statistics.to(device) if statistics is not None else None

    def bottleneck_maps(indices: torch.Tensor, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if l_ib is not None:
            return l_ib[indices].to(device)
        generators = [generator(seed, "bottleneck", image_ids[i], device=device) for i in indices]
        return bottleneck_saliency(
            network.head,
            features.detach(),
            target,
            statistics,
            generator=generators,
            multilabel=network.multilabel,
            **bottleneck.model_dump(),
        )

    def loss_of(indices: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = indices.to(device)
        target = targets[rows]
        return guided_losses(
            network,
            images,
            labels[rows],
            target,
            lambda features: bottleneck_maps(indices, features, target),
            guidance,
            suppression,
        )

    key, before = _held_out_score(network, data, training.batch_size, device)

    def evaluate() -> dict[str, float]:
        _, now = _held_out_score(network, data, training.batch_size, device)
        if now < before - COLLAPSE:
            raise TrainingError(
                f"{name}: the held-out {key} fell from {before:.3f} to {now:.3f}, so guidance has destroyed the classifier; "
                "lower guidance.step_size, guidance.mu or guidance.training.lr"
            )
        return {f"held_out_{key}": now}

    return run_epochs(
        network,
        data,
        image_ids,
        loss_of,
        training,
        name=name,
        stream="guidance",
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        digest=digest,
        evaluate=evaluate,
        train_mode=False,
    )
