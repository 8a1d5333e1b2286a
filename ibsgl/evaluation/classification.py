"""What the variants predict for whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.evaluation.scoring import image_logits
from ibsgl.metrics.classification import accuracy
from ibsgl.networks.split import SplitNetwork, evaluating

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def predict_variants(
    networks: Mapping[str, SplitNetwork],
    data: ImageDataset,
    ids: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """By variant, logits (N,K) on the CPU of the images ``ids``. Each image is read once."""
    classes = len(data.index.class_names)
    logits = {variant: [torch.zeros(0, classes)] for variant in networks}
    with torch.inference_mode(), ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        for _, images in data.batches(ids, batch_size):
            on_device = images.to(device)
            for variant, network in networks.items():
                logits[variant].append(image_logits(network, on_device).cpu())
    return {variant: torch.cat(parts) for variant, parts in logits.items()}


def predictions(data: ImageDataset, split: str, ids: Sequence[str], logits: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """The predictions for images of one split as a table.

    Args:
        data: the data set.
        split: the split that the images are in.
        ids: N images of the split, in any order.
        logits: by variant, (N,K).

    Returns:
        one row per (variant, image): ``variant``, ``split``, ``image_id``, ``correct`` (1 if the likeliest class is one of the
        image's, else 0), and ``logit_<k>`` and ``label_<k>`` for every class. Accuracy and mAP follow from these.
    """
    place = {image_id: number for number, image_id in enumerate(data.ids(split))}
    labels = data.labels(split)[[place[image_id] for image_id in ids]]
    frames = []
    for variant, of_variant in logits.items():
        correct = accuracy(of_variant, labels).double().numpy()
        columns = {"variant": variant, "split": split, "image_id": pd.Series(ids, dtype=str), "correct": correct}
        for k in range(of_variant.shape[1]):
            columns |= {f"logit_{k}": of_variant[:, k].numpy(), f"label_{k}": labels[:, k].numpy()}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
