"""Deletion curves of the test pairs (Figure 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.metrics import deletion
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator


def deletion_curves(
    network: SplitNetwork,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    saliency: torch.Tensor,
    settings: DeletionSettings,
    *,
    r: float,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """The deletion curves of one variant for one batch of pairs (Figure 4).

    Args:
        network: the variant, on the device of ``images``.
        rows: B rows of the data set's index.
        images: (B,3,H,W).
        targets: (B,) int64.
        saliency: (B,H,W), the variant's own maps.
        settings: of the curves.
        r: share of the image's pixels in the region that is deleted.
        seed: root seed of the random orders. They do not depend on the variant.
        batch_size: images per pass.

    Returns:
        one row per (pair, repeat, fraction): ``image_id``, ``class_name``, ``repeat``, ``fraction`` of the region that is
        deleted, and the target's ``probability``, both in [0,1].
    """
    device = images.device
    fractions = np.linspace(0, 1, settings.points)
    fill = network.mean.to(device) if settings.fill == "mean" else torch.zeros(3, 1, 1, device=device)
    curves = deletion.deletion_curve(
        network,
        images,
        targets,
        saliency,
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
    return pd.concat([identity, keys[["repeat", "fraction"]]], axis=1).assign(probability=probability)
