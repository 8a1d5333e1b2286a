"""Measurements on the held-out pairs: the losses that guidance optimises, and facts about the bottleneck's maps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.guidance.localization import other_class, saliency_cross_entropy
from ibsgl.inference import pair_batches
from ibsgl.networks.chunks import in_pieces
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.saliency import class_saliency, gradient_saliency
from ibsgl.suppression import suppression_loss

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset

_PAIR = ["image_id", "class_name"]


def overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Σ min(q₁, q₂) of two maps (B,h,w) ≥ 0 as distributions over space: (B,) in [0,1].

    Unlike L_SS, it does not change if a map is multiplied by a number. It is 0 where one of the maps is zero everywhere.
    """
    shares = []
    for maps in (first.double(), second.double()):
        total = maps.sum((1, 2), keepdim=True)
        shares.append(maps / total.where(total > 0, 1))
    return torch.minimum(*shares).sum((1, 2)).clamp(0, 1)


def pearson(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation over space of two maps (B,h,w): (B,) float64 in [−1,1]. NaN where one of the maps is constant."""
    centred, constant = [], torch.zeros(len(first), device=first.device, dtype=torch.bool)
    for maps in (first.double().flatten(1), second.double().flatten(1)):
        constant |= maps.amax(1) == maps.amin(1)
        # Scaled first: the squares of very small values would be 0.
        maps = maps / maps.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        centred.append(maps - maps.mean(1, keepdim=True))
    product = (centred[0] * centred[1]).sum(1)
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return (product / lengths).clamp(-1, 1).masked_fill(constant, torch.nan)


def held_out_losses(
    networks: Mapping[str, SplitNetwork],
    data: ImageDataset,
    pairs: pd.DataFrame,
    l_ib: torch.Tensor,
    *,
    r: float,
    cross_entropy: str,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """The losses of Eq. 10 of every variant, on images that no variant was trained on.

    Args:
        networks: by variant, on ``device``.
        data: at the networks' input size.
        pairs: N rows of ``data.pairs("held_out")``.
        l_ib: (N,h,w) of these pairs.
        r: fraction of the pixels in Mask_r (Eq. 1).
        cross_entropy: the form of L_CE (:func:`ibsgl.guidance.localization.saliency_cross_entropy`).
        batch_size: images per batch.
        device: where the networks run.

    Returns:
        one row per (variant, pair): ``variant``, ``image_id``, ``class_name``, ``l_ce`` = L_CE(L^c, L^ib) in nats, ``l_ss`` =
        L_SS(L^c, L^p), and ``overlap`` of L^c and L^p (:func:`overlap`).

    Raises:
        ValueError: ``l_ib`` has another number of maps than there are pairs.
    """
    if len(l_ib) != len(pairs):
        raise ValueError(f"there are {len(pairs)} pairs and {len(l_ib)} maps L^ib")
    labels_of = dict(zip(data.ids("held_out"), data.labels("held_out").bool(), strict=True))
    frames, start = [], 0
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "held-out losses"):
            labels = torch.stack([labels_of[image_id] for image_id in rows["image_id"]]).to(device)
            teacher = l_ib[start : start + len(rows)].to(device)
            start += len(rows)
            for variant, network in networks.items():
                l_c, l_p = _class_maps(network, images, targets, labels)
                values = {
                    "l_ce": saliency_cross_entropy(l_c, teacher, cross_entropy),
                    "l_ss": suppression_loss(l_c, l_p, r),
                    "overlap": overlap(l_c, l_p),
                }
                numbers = {key: value.double().cpu().numpy() for key, value in values.items()}
                frames.append(rows[_PAIR].assign(variant=variant, **numbers))
    return _joined(frames, {"image_id": str, "class_name": str, "variant": str}, ("l_ce", "l_ss", "overlap"))


def _features(network: SplitNetwork, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return in_pieces(network.stem, images)


def _class_maps(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L^c and L^p (B,h,w), from one pass of the network. ``labels`` (B,K) bool are all classes of the images."""
    features = _features(network, images)
    with torch.enable_grad():
        features.requires_grad_(True)
        logits = network.head(features)
        other = other_class(logits.detach(), targets, labels if network.multilabel else None)
        l_c, l_p = (class_saliency(logits, features, classes) for classes in (targets, other))
    return l_c, l_p


def diagnostics(
    network: SplitNetwork,
    data: ImageDataset,
    pairs: pd.DataFrame,
    l_ib: torch.Tensor,
    l_ib_other: torch.Tensor,
    *,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """What the bottleneck's maps contain: the class, or the activations and the gradient alone.

    Args:
        network: the one that ``l_ib`` is of, on ``device``.
        data: at the network's input size.
        pairs: N rows of the data set's index.
        l_ib: (N,h,w) of these pairs, in nats.
        l_ib_other: (N,h,w) of the same images and their likeliest other class p.
        batch_size: images per batch.
        device: where the network runs.

    Returns:
        one row per pair: ``image_id``, ``class_name``, ``nats`` (the sum of L^ib), ``r_other``, ``r_activation`` and
        ``r_gradient`` (Pearson's r of L^ib with that of p, with ‖A‖₂ over the channels, and with Eq. 3), and
        ``region_share`` (the boxes' share of the image, in [0,1]). An r is NaN where one of its two maps is constant.

    Raises:
        ValueError: there are more or fewer maps than pairs.
    """
    if not len(l_ib) == len(l_ib_other) == len(pairs):
        raise ValueError(
            f"there are {len(pairs)} pairs, {len(l_ib)} maps L^ib, and {len(l_ib_other)} of the other class"
        )
    columns = ("nats", "r_other", "r_activation", "r_gradient", "region_share")
    frames, start = [], 0
    with evaluating(network):
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "diagnostics"):
            part = slice(start, start + len(rows))
            start += len(rows)
            own, other = l_ib[part].to(device), l_ib_other[part].to(device)
            features = _features(network, images)
            values = (
                own.double().sum((1, 2)),
                pearson(own, other),
                pearson(own, features.norm(dim=1)),
                pearson(own, gradient_saliency(network.head, features, targets)),
                data.regions(rows).double().mean((1, 2)),
            )
            numbers = {key: value.double().cpu().numpy() for key, value in zip(columns, values, strict=True)}
            frames.append(rows[_PAIR].assign(**numbers))
    return _joined(frames, {"image_id": str, "class_name": str}, columns)


def _joined(frames: list[pd.DataFrame], names: dict[str, type], numbers: tuple[str, ...]) -> pd.DataFrame:
    """The frames below each other; without frames, a table with the columns alone."""
    if frames:
        return pd.concat(frames, ignore_index=True)
    types = names | dict.fromkeys(numbers, float)
    return pd.DataFrame(columns=list(types)).astype(types)
