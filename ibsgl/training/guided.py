"""Guided training (Algorithm 1), and its control: equally long, on the same examples, without guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ibsgl.bottleneck import Bottleneck, FeatureStatistics, bottleneck_saliency
from ibsgl.errors import TrainingError
from ibsgl.guidance.losses import training_losses
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.epochs import check_labels, held_out_score, run_epochs
from ibsgl.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


# If the held-out score falls by more than this, guidance has destroyed the classifier.
COLLAPSE = 0.25


def train_guided(
    network: SplitNetwork,
    data: ImageDataset,
    training: TrainingSettings,
    *,
    guidance: GuidanceSettings | None,
    suppression: SuppressionSettings | None,
    l_ib: torch.Tensor | None,
    bottleneck: Bottleneck | None = None,
    statistics: FeatureStatistics | None = None,
    name: str,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, float]]:
    """Train ``network`` further: with Algorithm 1, or without guidance (the control) if ``guidance`` is ``None``.

    Both trainings have the same (image, class) pairs in the same order. Batch norm's statistics are fixed, and there is no
    dropout. Only the added term of the loss differs.

    Args:
        network: the pretrained variant. It is trained in place.
        data: at the network's input size.
        training: optimiser and schedule.
        guidance: the settings of guidance; ``None`` for the control.
        suppression: the settings of suppression; ``None`` for the control.
        l_ib: (N,h,w) bottleneck maps of the train split's pairs, in the order of the index. ``None`` for the control, and if
            ``guidance.bottleneck_network`` is ``current``. Then ``bottleneck`` and ``statistics`` are needed.
        bottleneck: the bottleneck of ``current``.
        statistics: the feature statistics of ``current``.
        name, seed, device, checkpoint, digest: see :func:`ibsgl.training.epochs.run_epochs`.

    Returns:
        the history, one row per epoch.

    Raises:
        TrainingError: the loss is not finite, or the held-out score has fallen by more than 0.25.
    """
    check_labels(data, network.multilabel)
    network.to(device)
    pairs = data.pairs("train")
    image_ids = list(pairs["image_id"])
    row_by_id = {image_id: row for row, image_id in enumerate(data.ids("train"))}
    labels = data.labels("train")[[row_by_id[image_id] for image_id in image_ids]].to(device)
    targets = torch.tensor(pairs["target"].to_numpy(), device=device)
    statistics = statistics.to(device) if statistics is not None else None

    def bottleneck_maps(indices: torch.Tensor, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if l_ib is not None:
            return l_ib[indices].to(device)
        if bottleneck is None or statistics is None:
            raise ValueError(
                "guidance needs L^ib of the training pairs, or the bottleneck's settings and feature statistics"
            )
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

    def losses(indices: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = indices.to(device)
        target = targets[rows]
        return training_losses(
            network,
            images,
            labels[rows],
            target,
            lambda features: bottleneck_maps(indices, features, target),
            guidance,
            suppression,
        )

    key, before = held_out_score(network, data, training.batch_size, device)

    def evaluate() -> dict[str, float]:
        _, now = held_out_score(network, data, training.batch_size, device)
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
        losses,
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
