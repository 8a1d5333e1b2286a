"""Deletion curves of the test pairs (Figure 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ibsgl.attribution.storage import Maps
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.inference import pair_batches
from ibsgl.metrics import deletion
from ibsgl.networks.split import SplitNetwork, autocast, evaluating
from ibsgl.randomness import generator

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def deletion_curves(
    network: SplitNetwork,
    data: ImageDataset,
    maps: Maps,
    settings: DeletionSettings,
    *,
    r: float,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """The deletion curves of one variant (Figure 4).

    Args:
        network: the variant, on ``device``.
        data: at the network's input size.
        maps: those of one method.
        settings: of the curves.
        r: share of the image's pixels in the region that is deleted.
        seed: root seed of the random orders.
        batch_size: images per batch.
        device: where the network runs.

    Returns:
        one row per (pair, repeat, fraction): ``image_id``, ``class_name``, ``repeat``, ``fraction`` of the region that is
        deleted, and the target's ``probability``, both in [0,1].
    """
    fractions = np.linspace(0, 1, settings.points)
    fill = network.mean.to(device) if settings.fill == "mean" else torch.zeros(3, 1, 1, device=device)
    types = {"repeat": int, "fraction": float, "probability": float}
    # A shard without images still has columns.
    frames = [pd.DataFrame(columns=["image_id", "class_name", *types]).astype(types)] * maps.pairs.empty
    with evaluating(network), torch.inference_mode(), autocast(device):
        batches = pair_batches(data, maps.pairs, batch_size, device, "deletion")
        for (rows, images, targets), maps_by_method in zip(batches, maps.batches(batch_size), strict=True):
            (saliency,) = maps_by_method.values()
            curves = deletion.deletion_curve(
                network,
                images,
                targets,
                saliency.to(device),
                r=r,
                fractions=fractions.tolist(),
                generators=[generator(seed, "deletion", image_id, device=device) for image_id in rows["image_id"]],
                repeats=settings.repeats,
                fill=fill,
                chunk=batch_size,
            )
            keys = pd.MultiIndex.from_product(
                [range(len(rows)), range(settings.repeats), fractions], names=["row", "repeat", "fraction"]
            ).to_frame(index=False)
            identity = rows[["image_id", "class_name"]].iloc[keys["row"]].reset_index(drop=True)
            probability = curves.double().cpu().numpy().ravel()
            frames.append(pd.concat([identity, keys[["repeat", "fraction"]]], axis=1).assign(probability=probability))
    return pd.concat(frames, ignore_index=True)
