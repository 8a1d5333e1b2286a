"""Forward passes over a data set: batches of (image, class) pairs, logits, and how well a network classifies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from ibsgl.networks.chunks import in_pieces
from ibsgl.networks.split import SplitNetwork

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def pair_batches(
    data: ImageDataset, pairs: pd.DataFrame, batch_size: int, device: torch.device, desc: str
) -> Iterator[tuple[pd.DataFrame, torch.Tensor, torch.Tensor]]:
    """(rows, images (B,3,H,W), targets (B,)), with a progress bar over the pairs."""
    ids = list(pairs["image_id"])
    with tqdm(total=len(pairs), desc=desc, unit="map", disable=None) as bar:
        for start, (_, images) in zip(range(0, len(ids), batch_size), data.batches(ids, batch_size), strict=True):
            rows = pairs.iloc[start : start + batch_size]
            yield rows, images.to(device), torch.tensor(rows["target"].to_numpy(), device=device)
            bar.update(len(rows))


def predict(
    network: SplitNetwork, data: ImageDataset, split: str, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Logits (N,K) on the CPU for every image of ``split``, in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        logits = [
            in_pieces(network, images.to(device)).cpu() for _, images in data.batches(data.ids(split), batch_size)
        ]
    return torch.cat(logits)
