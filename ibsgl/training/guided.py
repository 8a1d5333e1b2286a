"""Guided training, and plain training: equally long, on the same examples, without guidance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ibsgl.bottleneck import Bottleneck, FeatureStatistics, bottleneck_saliency
from ibsgl.guidance.losses import training_losses
from ibsgl.guidance.registry import NO_LOSS, PAPER
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.guidance.teachers import other_pairs, teacher_map
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.epochs import check_labels, held_out_score, run_epochs
from ibsgl.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


# A training has collapsed if it ends with a held-out score that is lower than before by more than this.
COLLAPSE = 0.25


def collapsed(history: Sequence[dict[str, float]]) -> bool:
    """Whether a training of :func:`train_guided` with this history has lost more than 0.25 of the held-out score at its end."""
    return bool(history) and history[-1]["held_out_lost"] > COLLAPSE


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
    noise_seed: int | None = None,
    device: torch.device,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, float]]:
    """Train ``network`` further: guided, or plainly (the control) if the guidance's loss is ``none``.

    All these trainings have the same (image, class) pairs in the same order. Batch norm's statistics are fixed, and there is no
    dropout. Only the added term of the loss differs. Boxes are those of the training pairs. A training that collapses goes on
    to its end, with a warning.

    Args:
        network: the pretrained variant. It is trained in place.
        data: at the network's input size.
        training: optimiser and schedule.
        guidance: the settings of guidance. ``None`` or the loss ``none``: plain training, which uses none of the arguments
            from ``suppression`` to ``statistics``.
        suppression: the settings of suppression, for the loss ``localization``.
        l_ib: (N,h,w) nats, the bottleneck's maps of the train split's pairs, in the order of the index. They are needed if
            ``guidance.bottleneck_of`` is ``pretrained``; with ``current``, ``bottleneck`` and ``statistics`` are.
        bottleneck: the bottleneck of ``current``.
        statistics: the feature statistics of ``current``.
        name: see :func:`ibsgl.training.epochs.run_epochs`.
        seed: the training seed, for the order of the pairs, the teacher ``shuffled`` and the draws of a loss.
        noise_seed: the root seed, for the noise of the bottleneck of ``current``; ``None``: ``seed``.
        device, checkpoint, digest: see :func:`ibsgl.training.epochs.run_epochs`.

    Returns:
        the history, one row per epoch: the means of the losses, ``held_out_accuracy`` or ``held_out_map`` in [0,1], and
        ``held_out_lost``, the fall of that score since before the training.

    Raises:
        TrainingError: the loss is not finite.
        ValueError: an argument that guidance needs is missing.
    """
    check_labels(data, network.multilabel)
    network.to(device)
    if guidance is not None and guidance.loss == NO_LOSS:
        guidance = None
    pairs = data.pairs("train")
    image_ids = list(pairs["image_id"])
    row_by_id = {image_id: row for row, image_id in enumerate(data.ids("train"))}
    labels = data.labels("train")[[row_by_id[image_id] for image_id in image_ids]].to(device)
    targets = torch.tensor(pairs["target"].to_numpy(), device=device)
    statistics = statistics.to(device) if statistics is not None else None
    loss = guidance.build_loss(suppression) if guidance is not None else None
    teacher = guidance.build_teacher() if guidance is not None else None
    requires = guidance.requires if guidance is not None else frozenset()
    current = guidance is not None and guidance.bottleneck_of == "current"
    maps = None
    if guidance is not None and guidance.bottleneck_of == "pretrained":
        if l_ib is None:
            raise ValueError(f"guidance.teacher: {guidance.teacher} needs L^ib of the training pairs")
        if len(l_ib) != len(pairs):
            raise ValueError(f"there are {len(l_ib)} maps L^ib for {len(pairs)} training pairs; compute them again")
        maps = l_ib[other_pairs(pairs, seed)] if "shuffled" in requires else l_ib

    def current_maps(indices: torch.Tensor, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if bottleneck is None or statistics is None:
            raise ValueError("bottleneck_network: current needs the bottleneck's settings and feature statistics")
        root = seed if noise_seed is None else noise_seed
        generators = [generator(root, "bottleneck", image_ids[i], device=device) for i in indices]
        return bottleneck_saliency(
            network.head,
            features,
            target,
            statistics,
            generator=generators,
            multilabel=network.multilabel,
            **bottleneck.model_dump(),
        )

    def losses(epoch: int, indices: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = indices.to(device)
        target = targets[rows]
        generators, region = None, None
        if "region" in requires:
            region = data.regions(pairs.iloc[indices.tolist()]).to(device)
        if "generators" in requires:
            names = (("guidance", "draws", epoch, image_ids[i], int(pairs["target"][i])) for i in indices.tolist())
            generators = [generator(seed, *name, device=device) for name in names]

        def teach(features: torch.Tensor) -> torch.Tensor | None:
            if guidance is None or teacher is None:
                return None
            own = current_maps(indices, features, target) if current else None
            own = maps[indices].to(device) if maps is not None else own
            # The loss may see boxes where the teacher does not.
            boxes = region if "region" in teacher.requires else None
            return teacher_map(guidance.teacher, teacher, features, target, boxes, own)

        return training_losses(
            network, images, labels[rows], target, loss, teach=teach, region=region, generators=generators
        )

    key, before = held_out_score(network, data, training.batch_size, device)

    def evaluate() -> dict[str, float]:
        _, now = held_out_score(network, data, training.batch_size, device)
        return {f"held_out_{key}": now, "held_out_lost": before - now}

    history = run_epochs(
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
    if collapsed(history):
        kind, remedy = "without", "guidance.training.lr"
        if guidance is not None:
            kind, remedy = "with", "the weight of the guidance loss or guidance.training.lr"
            if guidance.loss == PAPER:
                remedy = "guidance.step_size, guidance.mu or guidance.training.lr"
        warnings.warn(
            f"{name}: the training {kind} guidance has lost {history[-1]['held_out_lost']:.3f} of the held-out {key}, "
            f"which was {before:.3f}; lower {remedy}",
            stacklevel=2,
        )
    return history
