"""The effect of guidance: the losses that it optimises, on held-out images, and the predictions on test images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.guidance.localization import localization_losses
from ibsgl.inference import pair_batches, predict
from ibsgl.metrics.classification import accuracy
from ibsgl.networks.chunks import in_pieces
from ibsgl.networks.split import SplitNetwork, autocast, evaluating

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def _measure(
    network: SplitNetwork,
    data: ImageDataset,
    l_ib: torch.Tensor,
    *,
    r: float,
    cross_entropy: str,
    batch_size: int,
    device: torch.device,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Losses and predictions of one variant; see :func:`guidance_effect`."""
    pairs = data.pairs("held_out")
    held_out_labels = dict(zip(data.ids("held_out"), data.labels("held_out").bool(), strict=True))
    cross, suppression = [], []
    with evaluating(network):
        start = 0
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "guidance effect"):
            with torch.no_grad(), autocast(device):
                features = in_pieces(network.stem, images)
            labels = torch.stack([held_out_labels[i] for i in rows["image_id"]]).to(device)
            l_ce, l_ss, _ = localization_losses(
                network.head,
                features.float(),
                targets,
                l_ib[start : start + len(rows)].to(device),
                r=r,
                labels=labels if network.multilabel else None,
                form=cross_entropy,
            )
            cross.append(l_ce.cpu())
            suppression.append(l_ss.cpu())
            start += len(rows)
        logits, labels = predict(network, data, "test", batch_size, device), data.labels("test")
    losses = pairs[["image_id", "class_name"]].assign(
        l_ce=torch.cat(cross).double().numpy(), l_ss=torch.cat(suppression).double().numpy()
    )
    predictions = pd.DataFrame({"image_id": data.ids("test"), "correct": accuracy(logits, labels).double().numpy()})
    for k in range(logits.shape[1]):
        predictions[f"logit_{k}"], predictions[f"label_{k}"] = logits[:, k].numpy(), labels[:, k].numpy()
    return losses.reset_index(drop=True), predictions


def guidance_effect(
    networks: Iterable[tuple[str, SplitNetwork]],
    data: ImageDataset,
    l_ib: torch.Tensor,
    *,
    r: float,
    cross_entropy: str,
    batch_size: int,
    device: torch.device,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The losses of Eq. 10 and the predictions of every variant, on images that no variant was trained on.

    Args:
        networks: each variant's name and network on ``device``. A generator holds one network in memory at a time.
        data: at the networks' input size.
        l_ib: (N,h,w) of the held-out pairs, in the order of the index.
        r: fraction of the pixels in Mask_r (Eq. 1).
        cross_entropy: the form of L_CE (:func:`ibsgl.guidance.saliency_cross_entropy`).
        batch_size: images per batch.
        device: where the networks run.

    Returns:
        Two frames, losses and predictions, with the column ``variant``. The losses have one row per held-out pair:
        ``image_id``, ``class_name``, ``l_ce`` = L_CE(L^c, L^ib) in nats, and ``l_ss`` = L_SS. The predictions have one row per
        test image: ``image_id``, ``correct``, and one ``logit_<k>`` and ``label_<k>`` per class. Accuracy and mAP follow from
        these.

    Raises:
        ValueError: two networks have one name.
    """
    parts = {}
    for variant, network in networks:
        if variant in parts:
            raise ValueError(f"there are two networks of the variant {variant!r}")
        parts[variant] = _measure(
            network, data, l_ib, r=r, cross_entropy=cross_entropy, batch_size=batch_size, device=device
        )
    losses, predictions = (
        pd.concat([part[place].assign(variant=variant) for variant, part in parts.items()], ignore_index=True)
        for place in (0, 1)
    )
    return losses, predictions
