"""Every variant's own value, and the differences between variants, paired by image and replicate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ibsgl.reporting.measurements import Measurements, Quantity
from ibsgl.reporting.statistics import Estimate, crossed_estimate, proportion_interval
from ibsgl.training.variants import CONTROL, GUIDED, PRETRAINED

LOCALISATION = ("ebpg", "miou", "bbox")
FAITHFULNESS = ("average_drop", "average_increase")
DELETION = ("deletion_area", "deletion_area_relative")
LOSSES = ("l_ce", "l_ss", "overlap")
# The two shams that bound what a teacher can do: the object's own region, and a map without content.
BOXES, UNIFORM = "boxes", "uniform"
DIAGNOSTICS = {
    "nats": "nats",
    "r_other": "r",
    "r_activation": "r",
    "r_gradient": "r",
    "region_share": "%",
}
METRIC_LABELS = {
    "ebpg": "EBPG",
    "miou": "mIoU",
    "bbox": "Bbox",
    "average_drop": "Average Drop",
    "average_increase": "Average Increase",
    "accuracy": "accuracy",
    "map": "mAP",
    "deletion_area": "area under the deletion curve",
    "deletion_area_relative": "area under the deletion curve, divided by its start",
    "l_ce": "L_CE(L^c, L^ib)",
    "l_ss": "L_SS(L^c, L^p)",
    "overlap": "scale-free overlap of L^c and L^p",
}
# Where an image is right or wrong. If all images are equal, the variance is zero, but the uncertainty is not.
_PROPORTIONS = ("accuracy", "average_increase")


def value_unit(metric: str) -> str:
    """The unit of a value: %, nats or fraction."""
    return "nats" if metric == "l_ce" else "fraction" if metric in LOSSES else "%"


def difference_unit(metric: str) -> str:
    """The unit of a difference: points (percentage points), nats or fraction."""
    unit = value_unit(metric)
    return "points" if unit == "%" else unit


def estimate_value(
    measurements: Measurements, quantity: Quantity, average: Literal["pairs", "classes"] = "pairs"
) -> Estimate:
    """One quantity with its interval over images and replicates.

    The interval of a value in percent stays within [0, 100]. For accuracy and Average Increase with one replicate, or with
    images that are all right or all wrong, it is Wilson's of the images: 96 right images of 96 are not [100, 100].

    Raises:
        ValueError: the quantity was not measured.
    """
    values = measurements.values(quantity, average)
    estimate = _estimate(values)
    if value_unit(quantity.metric) != "%":
        return estimate
    flat = np.ptp(values.to_numpy()) == 0
    if quantity.metric in _PROPORTIONS and (values.shape[1] == 1 or flat):
        images = len(values)
        right = min(max(estimate.mean / 100 * images, 0.0), float(images))
        low, high = (100 * edge for edge in proportion_interval(right, images))
    elif quantity.metric == "deletion_area_relative":
        # A probability may rise while pixels are deleted.
        low, high = max(estimate.low, 0.0), estimate.high
    else:
        low, high = max(estimate.low, 0.0), min(estimate.high, 100.0)
    # Rounding may put a mean of 100 beyond its interval.
    low, high = min(low, estimate.mean), max(high, estimate.mean)
    return dataclasses.replace(estimate, low=low, high=high)


def estimate_difference(
    measurements: Measurements,
    first: Quantity,
    second: Quantity,
    average: Literal["pairs", "classes"] = "pairs",
) -> Estimate:
    """``first`` − ``second``, paired by image and replicate, on the replicates where both were measured.

    For accuracy and Average Increase without any difference between images, the standard error is that of Wilson's upper limit
    for 0 changed images: no change among 96 images does not exclude a change of one point.

    Raises:
        ValueError: one was not measured, they share no replicate, or they are of different images.
    """
    difference = difference_values(measurements, first, second, average)
    estimate = _estimate(difference)
    if first.metric in _PROPORTIONS and difference.size > 1 and not difference.to_numpy().any():
        estimate = _no_change(estimate)
    return estimate


def difference_values(
    measurements: Measurements,
    first: Quantity,
    second: Quantity,
    average: Literal["pairs", "classes"] = "pairs",
) -> pd.DataFrame:
    """``first`` − ``second`` of every image (rows) in every replicate that both have (columns).

    Raises:
        ValueError: one was not measured, they share no replicate, or they are of different images.
    """
    left, right = (measurements.values(quantity, average) for quantity in (first, second))
    shared = [number for number in left.columns if number in right.columns]
    if not shared:
        raise ValueError(f"{measurements.model}: {_title(first)} and {_title(second)} share no replicate")
    if not left.index.equals(right.index):
        raise ValueError(
            f"{measurements.model}: {_title(first)} and {_title(second)} were not measured on the same images"
        )
    return left[shared] - right[shared]


def comparison_table(
    measurements: Measurements,
    variants: Sequence[str],
    *,
    multilabel: bool = False,
    average: Literal["pairs", "classes"] = "pairs",
) -> pd.DataFrame:
    """Every variant's own values, guided minus every other variant, and every further variant minus the control.

    Args:
        measurements: of one network.
        variants: those of the config. Variants that were not measured are left out.
        multilabel: mAP takes the place of the accuracy.
        average: how (image, class) pairs are averaged.

    Returns:
        ``metric``, ``comparison`` (a variant, "guided - control", …, "<variant> - control", … and "boxes - uniform", the
        positive control), ``value``,
        ``low``, ``high`` (95 %), ``unit`` (%, points, nats, fraction), ``replicates``, ``images``, and ``by_replicate``: every
        replicate's own value, joined by "; ".
    """
    metrics = [*LOCALISATION, *FAITHFULNESS, *DELETION, *LOSSES, "map" if multilabel else "accuracy"]
    rows = []
    for metric in metrics:
        quantities = {variant: Quantity(metric, variant) for variant in variants}
        present = [variant for variant, quantity in quantities.items() if not measurements.missing(quantity)]
        for variant in present:
            found = estimate_value(measurements, quantities[variant], average)
            rows.append(_row(metric, variant, found, value_unit(metric)))
        further = [variant for variant in variants if variant not in (CONTROL, PRETRAINED, GUIDED)]
        differences = [(GUIDED, other) for other in (CONTROL, PRETRAINED, *further)]
        differences += [*((variant, CONTROL) for variant in further), (BOXES, UNIFORM)]
        for first, second in differences:
            if first in present and second in present:
                found = estimate_difference(measurements, quantities[first], quantities[second], average)
                rows.append(_row(metric, f"{first} - {second}", found, difference_unit(metric)))
    return pd.DataFrame(rows)


def cross_scoring_table(
    measurements: Measurements, variants: Sequence[str], *, average: Literal["pairs", "classes"] = "pairs"
) -> pd.DataFrame:
    """Average Drop and Increase of one variant's maps on another variant's probabilities.

    The difference between two maps on one network is that of the maps. The difference between two networks on one map is that
    of the networks.

    Args:
        measurements: of one network.
        variants: those of the config.
        average: how (image, class) pairs are averaged.

    Returns:
        ``metric``, ``maps_of``, ``scored_on``, and the columns of :func:`comparison_table` from ``value`` on. Own maps on the
        own network come first, then what was scored crosswise.
    """
    pairs = [(variant, variant) for variant in variants]
    pairs += [(variant, PRETRAINED) for variant in variants if variant != PRETRAINED]
    pairs += [(PRETRAINED, variant) for variant in variants if variant != PRETRAINED]
    rows = []
    for metric in FAITHFULNESS:
        for maps_of, scored_on in pairs:
            quantity = Quantity(metric, maps_of, scored_on=scored_on)
            if not measurements.missing(quantity):
                row = _row(metric, "", estimate_value(measurements, quantity, average), value_unit(metric))
                del row["comparison"]
                rows.append({"metric": metric, "maps_of": maps_of, "scored_on": scored_on} | row)
    return pd.DataFrame(rows)


def diagnostics_table(measurements: Measurements) -> pd.DataFrame:
    """What explains an effect or its absence: means over the held-out pairs, of the pretrained network.

    Returns:
        ``quantity``: ``nats``, the total of L^ib; ``r_other``, Pearson's r of L^ib of c and of p; ``r_activation``, with the
        norm of the features over the channels; ``r_gradient``, with Eq. 3; ``region_share``, the boxes' share of the image.
        On images with boxes of this size, a uniform map has this EBPG. ``value``; ``lowest``, ``highest`` (replicate);
        ``unit`` (nats, r, %);
        ``pairs``; ``undefined``, the number of (replicate, pair)s without a value: a flat map has no r. The value is NaN if
        there is none.
    """
    rows = []
    for column, unit in DIAGNOSTICS.items():
        measured = measurements.diagnostics[[*("replicate", "image_id", "class_name"), column]]
        values = measured[column].astype(np.float64) * (100 if unit == "%" else 1)
        means = values.groupby(measured["replicate"]).mean()
        rows.append(
            {
                "quantity": column,
                "value": float(means.mean()),
                "lowest": float(means.min()),
                "highest": float(means.max()),
                "unit": unit,
                "replicates": len(means),
                "pairs": len(measured.drop_duplicates(["image_id", "class_name"])),
                "undefined": int(values.isna().sum()),
            }
        )
    return pd.DataFrame(rows)


def interval_note(replicates: Iterable[int]) -> str:
    """What the intervals of rows on so many trainings cover. Rows on no training have none."""
    numbers = set(replicates) - {0}
    single = "over images alone. It holds for these trainings only: another training can give another value"
    if numbers == {1}:
        return f"[low, high] is the 95 % t-interval {single}."
    crossed = "[low, high] is the 95 % t-interval over images and trainings, which are crossed (two-way analysis of variance)."
    return crossed + (f" On one training it is {single}." if 1 in numbers else "")


def _no_change(estimate: Estimate) -> Estimate:
    """The estimate of a difference where no image has changed; see :func:`estimate_difference`."""
    half = 100 * proportion_interval(0, estimate.images)[1]
    # A single image has no degrees of freedom. Then the replicates have them.
    unit = dataclasses.replace(estimate, standard_error=1.0, replicate_share=float(estimate.images == 1))
    return dataclasses.replace(
        unit,
        low=-half,
        high=half,
        standard_error=half / unit.interval(0.95)[1],
    )


def _title(quantity: Quantity) -> str:
    return f"{quantity.metric} of {quantity.method} on {quantity.variant}"


def _estimate(values: pd.DataFrame) -> Estimate:
    return crossed_estimate(values.to_numpy(dtype=np.float64).T)


def by_replicate_text(estimate: Estimate) -> str:
    """Every replicate's own value, with all digits: "1.25; 1.5"."""
    return "; ".join(repr(float(value)) for value in estimate.by_replicate)


def _row(metric: str, title: str, estimate: Estimate, unit: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "comparison": title,
        "value": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "unit": unit,
        "replicates": estimate.replicates,
        "images": estimate.images,
        "by_replicate": by_replicate_text(estimate),
    }
