"""The effect of guidance on what it optimises, and how well every variant classifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ibsgl.metrics.classification import accuracy, average_precision, average_precision_11, mean_average_precision
from ibsgl.randomness import derive_seed
from ibsgl.reporting.columns import PAIR
from ibsgl.reporting.statistics import bootstrap_interval, paired_interval
from ibsgl.training.variants import VARIANTS

DIFFERENCE = "guided - control"
# One resample of mAP sorts the scores of every class. Above this number, resamples take too long.
_MAX_MAP_RESAMPLES = 1000


def guidance_table(
    losses: pd.DataFrame, predictions: pd.DataFrame, *, multilabel: bool = False, seed: int, resamples: int = 10000
) -> pd.DataFrame:
    """L_CE(L^c, L^ib), L_SS and accuracy of every variant of one model, and guided − control.

    On a multi-label set mAP takes the place of the accuracy.

    Args:
        losses: of held-out training images; ``variant``, ``image_id``, ``l_ce``, ``l_ss``. With ``class_name`` an image may
            have several rows.
        predictions: of test images; ``variant``, ``image_id`` and ``correct`` (bool, 0 or 1), or on a multi-label set one
            ``logit_<k>`` and one ``label_<k>`` per class.
        multilabel: the images may show several classes.
        seed: root seed of the bootstrap.
        resamples: number of resamples of the bootstrap, in which images are resampled; for mAP at most 1000.

    Returns:
        ``metric`` (l_ce in nats; l_ss as a fraction; accuracy or map in percent, their differences in percentage points),
        ``variant`` (those that are present, and "guided - control"), ``value``, ``low``, ``high`` (95 % interval),
        ``n_rows``, ``n_images``.

    Raises:
        ValueError: a variant was not measured on the same rows as the others, or a value is NaN.
    """
    table_rows: list[dict[str, Any]] = []
    measured = [("l_ce", losses, "l_ce", 1), ("l_ss", losses, "l_ss", 1)]
    if not multilabel:
        measured.append(("accuracy", predictions, "correct", 100))
    for metric, frame, column, scale in measured:
        index = [key for key in PAIR if key in frame]
        if frame.duplicated([*index, "variant"]).any():
            raise ValueError(f"{metric}: more than one row for the same {' and '.join(index)} of a variant")
        wide = frame.pivot(index=index, columns="variant", values=column).astype(np.float64) * scale
        bad = [variant for variant in wide if not np.isfinite(wide[variant]).all()]
        if bad:
            raise ValueError(f"{metric}: {', '.join(bad)} has NaN, or lacks rows that another variant has")
        images = wide.index.get_level_values("image_id")
        count = {"n_rows": len(wide), "n_images": images.nunique()}
        for variant in (variant for variant in VARIANTS if variant in wide):
            low, high = bootstrap_interval(wide[variant], images, seed=seed, resamples=resamples)
            mean = float(wide[variant].mean())
            table_rows.append({"metric": metric, "variant": variant, "value": mean, "low": low, "high": high, **count})
        if {"guided", "control"} <= set(wide):
            low, high = paired_interval(wide["guided"], wide["control"], images, seed=seed, resamples=resamples)
            mean = float((wide["guided"] - wide["control"]).mean())
            table_rows.append(
                {"metric": metric, "variant": DIFFERENCE, "value": mean, "low": low, "high": high, **count}
            )
    if multilabel:
        table_rows += _map_rows(predictions, seed=seed, resamples=min(resamples, _MAX_MAP_RESAMPLES))
    return pd.DataFrame(table_rows)


def classification_table(
    predictions: pd.DataFrame, class_names: Sequence[str], difficult: np.ndarray, *, multilabel: bool
) -> pd.DataFrame:
    """How well every variant classifies, class by class.

    Args:
        predictions: of test images; ``variant`` and one ``logit_<k>``/``label_<k>`` per class. The images of every variant
            are in the same order.
        class_names: K names.
        difficult: (N,K) bool, the images that ``ap11`` leaves out for a class, as VOC does.
        multilabel: the images may show several classes.

    Returns:
        ``variant``, ``class``, ``images`` (how many show the class), and ``ap`` and ``ap11``
        (:mod:`ibsgl.metrics.classification`) on a multi-label set, otherwise ``accuracy``. All in percent, NaN for a class
        that no image shows.
    """
    rows, ignored = [], torch.from_numpy(difficult)
    for variant, frame in predictions.groupby("variant", sort=False):
        logits, labels = (
            torch.tensor(frame[[f"{kind}_{k}" for k in range(len(class_names))]].to_numpy())
            for kind in ("logit", "label")
        )
        correct = None if multilabel else accuracy(logits, labels).double()
        for k, name in enumerate(class_names):
            score, label, left_out = logits[:, k], labels[:, k], ignored[:, k]
            row = {"variant": variant, "class": name, "images": int(label.sum())}
            if correct is None:
                row["ap"] = 100 * average_precision(score, label).item()
                row["ap11"] = 100 * average_precision_11(score, label, left_out).item()
            else:
                row["accuracy"] = 100 * correct[label.bool()].mean().item()
            rows.append(row)
    return pd.DataFrame(rows)


def _map_rows(predictions: pd.DataFrame, *, seed: int, resamples: int) -> list[dict[str, Any]]:
    """mAP in percent of every variant and of guided − control. The same images are resampled for every variant.

    A resample that lacks a class averages over the other classes.
    """
    scored = {}
    for variant, rows in predictions.groupby("variant"):
        rows = rows.sort_values("image_id")
        logits, labels = (torch.tensor(rows.filter(regex=f"^{kind}_").to_numpy()) for kind in ("logit", "label"))
        scored[variant] = logits, labels
    images = len(next(iter(scored.values()))[0])
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", "map"))
    # First the images themselves, then the resamples.
    draws = [torch.arange(images), *(torch.from_numpy(rng.integers(images, size=images)) for _ in range(resamples))]
    values = {
        variant: np.array([100 * mean_average_precision(logits[rows], labels[rows]) for rows in draws])
        for variant, (logits, labels) in ((variant, scored[variant]) for variant in VARIANTS if variant in scored)
    }
    if {"guided", "control"} <= set(values):
        values[DIFFERENCE] = values["guided"] - values["control"]
    return [
        {
            "metric": "map",
            "variant": variant,
            "value": float(value),
            "low": float(np.quantile(resampled, 0.025)),
            "high": float(np.quantile(resampled, 0.975)),
            "n_rows": images,
            "n_images": images,
        }
        for variant, (value, *resampled) in values.items()
    ]
