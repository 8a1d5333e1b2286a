"""How well every variant classifies, class by class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch

from ibsgl.metrics.classification import accuracy, average_precision, average_precision_11
from ibsgl.reporting.measurements import Measurements


def classification_table(
    measurements: Measurements, difficult: pd.DataFrame | None = None, *, multilabel: bool
) -> pd.DataFrame:
    """How well every variant classifies the test images, class by class. The values are means over the replicates.

    Args:
        measurements: of one network; of the predictions only rows of the split "test" count.
        difficult: index ``image_id``, K columns of bool: the images that ``ap11`` leaves out for a class, as VOC does.
            ``None``: none.
        multilabel: the images may show several classes.

    Returns:
        ``variant``, ``class``, ``images`` (how many show the class), ``replicates``, and ``ap`` and ``ap11``
        (:mod:`ibsgl.metrics.classification`) on a multi-label set, otherwise ``accuracy``. All in percent, NaN for a class
        that no image shows.
    """
    rows: list[dict[str, Any]] = []
    class_names = measurements.metadata["class_names"]
    test = measurements.predictions[measurements.predictions["split"] == "test"]
    for variant, of_variant in test.groupby("variant", sort=False):
        parts = [
            _by_class(frame.sort_values("image_id"), len(class_names), difficult, multilabel=multilabel)
            for _, frame in of_variant.groupby("replicate", sort=True)
        ]
        for k, name in enumerate(class_names):
            with warnings.catch_warnings():
                # The mean of NaN only is NaN.
                warnings.simplefilter("ignore", RuntimeWarning)
                values = {
                    key: float(np.nanmean([part[key][k] for part in parts])) for key in parts[0] if key != "images"
                }
            rows.append(
                {
                    "variant": variant,
                    "class": name,
                    "images": int(parts[0]["images"][k]),
                    "replicates": len(parts),
                    **values,
                }
            )
    return pd.DataFrame(rows)


def _by_class(
    frame: pd.DataFrame, classes: int, difficult: pd.DataFrame | None, *, multilabel: bool
) -> dict[str, list[float]]:
    """The columns of :func:`classification_table` for one replicate, one value per class."""
    logits, labels = (
        torch.tensor(frame[[f"{kind}_{k}" for k in range(classes)]].to_numpy()) for kind in ("logit", "label")
    )
    found: dict[str, list[float]] = {"images": [float(labels[:, k].sum()) for k in range(classes)]}
    if not multilabel:
        correct = accuracy(logits, labels).double()
        found["accuracy"] = [100 * correct[labels[:, k].bool()].mean().item() for k in range(classes)]
        return found
    ignored = torch.zeros(labels.shape, dtype=torch.bool)
    if difficult is not None:
        ignored = torch.tensor(difficult.loc[frame["image_id"]].to_numpy(dtype=bool))
    found["ap"] = [100 * average_precision(logits[:, k], labels[:, k]).item() for k in range(classes)]
    found["ap11"] = [
        100 * average_precision_11(logits[:, k], labels[:, k], ignored[:, k]).item() for k in range(classes)
    ]
    return found
