"""Tables 1–4: our value beside the published one, with interval, marks, difference and verdict.

Values are fractions in the files of a run and percentages from here on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ibsgl.config.schema import SANITY_METHODS
from ibsgl.metrics import METRICS, Metric
from ibsgl.reporting.comparisons import estimate_value
from ibsgl.reporting.measurements import Measurements, Quantity
from ibsgl.reporting.published import (
    check_number,
    comparable_settings,
    data_set,
    deviations,
    not_stated,
    read_published,
    read_published_settings,
)
from ibsgl.reporting.statistics import Estimate, crossed_estimate
from ibsgl.training.variants import PRETRAINED, VARIANTS

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

LEVEL = 0.95
NOT_RUN = "not run"
NOT_PUBLISHED = "not published"
NOT_COMPARABLE = "not comparable"
ONE_TRAINING = "one training"
UNKNOWN = "unknown"
VERDICT_RULE = (
    "Verdict: a value is comparable only if the run has none of the deviations above. It needs at least two trainings; with "
    "one it is 'one training', unless the network is explained as it was downloaded. It is 'agrees' if ours and the published "
    "value differ by at most what chance explains (95 %), otherwise 'above' or 'below', as ours is above or below. Chance is "
    "our standard error over images and trainings, and the published value's own, in quadrature. The latter is not published: "
    "our standard error over images alone, scaled to the number of the published test images, stands for it. The training "
    "variance of the published value is unknown."
)
# Digits of Tables 1–4 (in percent), and of the further metrics. Ranks are those of the rounded values.
PERCENT_DIGITS, METRIC_DIGITS = 2, 4


class _Row(NamedTuple):
    section: Literal["main", "extra"]
    label: str
    variant: str
    method: str


class _Result(NamedTuple):
    """One cell: the per-image values in percent (images × replicates), their estimate, and the interval that is shown."""

    values: pd.DataFrame
    estimate: Estimate
    shown: Estimate


def table_metrics(number: int) -> list[type[Metric]]:
    """The metrics of table ``number``, in the paper's order."""
    check_number(number)
    table = "localization" if number in (1, 2) else "faithfulness"
    return [metric for metric in METRICS.values() if metric.table == table]


def table_of_run(
    measurements: Measurements, number: int, config: Config, model: str, published_dir: str | Path
) -> pd.DataFrame:
    """Table ``number`` of a run, compared with the published settings and values; see :func:`build_table`.

    Args:
        measurements: those of ``model``.
        number: 1 to 4.
        config: the config of the run.
        model: the network that the table is about.
        published_dir: folder with ``table1.csv`` … ``table4.csv`` and ``settings.yaml``.
    """
    settings, reference = _settings(measurements, config, model, published_dir, number)
    table = build_table(
        measurements,
        number,
        published_dir,
        deviations=deviations(settings, reference),
        average=config.tables.average,
        untrained=() if config.for_model(model).classifier.epochs else (PRETRAINED,),
    )
    table.attrs["not_stated"] = not_stated(settings, reference)
    return table


def deviations_of_run(measurements: Measurements, config: Config, model: str, published_dir: str | Path) -> list[str]:
    """How the run of ``model`` differs from the published settings of its tables; see :func:`table_of_run`."""
    number = 1 + list(config.models).index(model)
    return deviations(*_settings(measurements, config, model, published_dir, number))


def _settings(
    measurements: Measurements, config: Config, model: str, published_dir: str | Path, number: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the run and the published ones of table ``number``."""
    reference = read_published_settings(published_dir, number)
    images = measurements.scores["image_id"].nunique()
    settings = comparable_settings(config, model)
    settings["data"] = data_set(images, measurements.metadata["class_names"], config.name, reference)
    return settings, reference


def build_table(
    measurements: Measurements,
    number: int,
    published_dir: str | Path,
    *,
    deviations: Sequence[str],
    average: Literal["pairs", "classes"] = "pairs",
    untrained: Collection[str] = (),
) -> pd.DataFrame:
    """Table ``number`` with one row per (variant, method, metric).

    Only maps that are scored by the variant that they are from count.

    Args:
        measurements: of one model.
        number: 1 and 2 are the localisation tables of the first and second model, 3 and 4 the faithfulness tables.
        published_dir: folder with ``table1.csv`` … ``table4.csv`` and ``settings.yaml``.
        deviations: how the run differs from the published settings (:func:`ibsgl.reporting.published.deviations`).
        average: ``pairs``, the mean over (image, class) pairs; ``classes``, the mean over the classes' means.
        untrained: variants that this run has not trained. They are the same in every replicate, so one is enough for a verdict.

    Returns:
        Columns ``section`` ("main", "extra"), ``row`` (label), ``variant``, ``method``, ``metric`` (key), ``value`` (mean over
        images and replicates), ``low``, ``high`` (percent, 95 % interval over images and replicates; over images alone with
        one replicate; "unknown" with one image too; "not run" in all three where there are no scores), ``replicates``
        (number), ``by_replicate`` (each replicate's value, joined by "; "), ``n_pairs``, ``n_images``, ``rank`` ("best",
        "second", ""), ``published`` (percent or "not published"), ``difference`` (ours − published, percentage points, or
        why there is none), ``verdict``, ``source`` (of the published value). ``attrs`` has what the caption needs.

        Rank: among the rows of one variant, without the sanity methods, by the mean over the replicates that all these rows
        have. Equal values share a rank. A variant with a single row has none.

        Verdict: "not run" without scores; "not published" without a published value; "not comparable" if ``deviations``
        is not empty; "one training" with one replicate of a trained variant; otherwise "agrees", "above" or "below" by
        :data:`VERDICT_RULE`.

    Raises:
        ValueError: no scores, or values that are not finite.
    """
    metrics = table_metrics(number)
    own = measurements.scores[measurements.scores["scored_on"] == measurements.scores["variant"]]
    if own.empty:
        raise ValueError(f"{measurements.model}: a table needs scores, and there are none")
    published = read_published(published_dir, number)
    test_set = read_published_settings(published_dir, number)["test_set"]
    printed = published.set_index(["variant", "method", "metric"])
    layout = _row_layout(published, own)
    n_pairs, n_images = len(own.drop_duplicates(["image_id", "class_name"])), own["image_id"].nunique()

    results = {}
    for variant, method in own[["variant", "method"]].drop_duplicates().itertuples(index=False):
        for metric in metrics:
            quantity = Quantity(metric.key, variant, method)
            values = measurements.values(quantity, average)
            estimate = crossed_estimate(values.to_numpy(dtype=np.float64).T, level=LEVEL)
            results[variant, method, metric.key] = _Result(
                values, estimate, estimate_value(measurements, quantity, average)
            )
    ranks = _ranks(layout, metrics, results)

    table_rows = []
    for row in layout:
        for metric in metrics:
            key = (row.variant, row.method, metric.key)
            result = results.get(key)
            published_value = float(printed.loc[key, "value"]) if key in printed.index else None
            difference, verdict = _verdict(
                result,
                published_value,
                comparable=not deviations,
                trained=row.variant not in untrained,
                published_images=test_set["images"],
            )
            table_rows.append(
                {
                    "section": row.section,
                    "row": row.label,
                    "variant": row.variant,
                    "method": row.method,
                    "metric": metric.key,
                    **_numbers(result),
                    "n_pairs": n_pairs if result else 0,
                    "n_images": n_images if result else 0,
                    "rank": ranks.get((row, metric.key), ""),
                    "published": NOT_PUBLISHED if published_value is None else published_value,
                    "difference": difference,
                    "verdict": verdict,
                    "source": NOT_PUBLISHED if published_value is None else printed.loc[key, "source"],
                }
            )
    table = pd.DataFrame(table_rows).astype(dict.fromkeys(("value", "low", "high", "published", "difference"), object))
    table.attrs = {
        "number": number,
        "arch": measurements.arch,
        "deviations": list(deviations),
        "not_stated": [],
        "differences": read_published_settings(published_dir, number)["differences"],
        "average": average,
        "n_pairs": n_pairs,
        "n_images": n_images,
    }
    return table


def _numbers(result: _Result | None) -> dict[str, object]:
    """Value, interval and replicates of a cell."""
    if result is None:
        return {"value": NOT_RUN, "low": NOT_RUN, "high": NOT_RUN, "replicates": 0, "by_replicate": NOT_RUN}
    estimate = result.estimate
    known = np.isfinite([estimate.low, estimate.high]).all()
    return {
        "value": float(estimate.mean),
        "low": float(result.shown.low) if known else UNKNOWN,
        "high": float(result.shown.high) if known else UNKNOWN,
        "replicates": estimate.replicates,
        "by_replicate": "; ".join(repr(float(value)) for value in estimate.by_replicate),
    }


def _row_layout(published: pd.DataFrame, scores: pd.DataFrame) -> list[_Row]:
    """The paper's rows, the rows that this benchmark adds, and everything else that was scored."""
    printed = published.drop_duplicates(["variant", "method"])
    in_paper, elsewhere = printed[printed["in_paper"]], printed[~printed["in_paper"]]
    rows = [_Row("main", row.label, row.variant, row.method) for row in in_paper.itertuples()]
    rows += [_Row("extra", row.label, row.variant, row.method) for row in elsewhere.itertuples()]
    rows += [
        _Row("extra", "Eq. 3, unguided network", "pretrained", "gradient"),
        _Row("extra", "Eq. 3, control network", "control", "gradient"),
        _Row("extra", "Information bottleneck (Eq. 9)", "pretrained", "bottleneck"),
    ]
    baselines = in_paper[in_paper["variant"] == "pretrained"]
    rows += [_Row("extra", f"{row.label}, guided network", "guided", row.method) for row in baselines.itertuples()]
    rows += [
        _Row("extra", "Centre (sanity method)", "pretrained", "center"),
        _Row("extra", "Random (sanity method)", "pretrained", "random"),
        _Row("extra", "Oracle (sanity method)", "pretrained", "oracle"),
    ]
    present = {(row.variant, row.method) for row in rows}
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    scored = scores.drop_duplicates(["variant", "method"])[["variant", "method", "label"]].itertuples(index=False)
    for row in sorted(scored, key=lambda row: (order.get(row.variant, len(order)), row.variant, row.method)):
        if (row.variant, row.method) not in present:
            label = "Eq. 3" if row.method == "gradient" else row.label
            suffix = "" if row.variant == "pretrained" else f", {row.variant} network"
            rows.append(_Row("extra", f"{label}{suffix}", row.variant, row.method))
    return rows


def _ranks(
    layout: Sequence[_Row],
    metrics: Sequence[type[Metric]],
    results: Mapping[tuple[str, str, str], _Result],
) -> dict[tuple[_Row, str], str]:
    """By row and metric, "best" and "second" among the rows of one variant; see :func:`build_table`."""
    ranks = {}
    for metric in metrics:
        for variant in dict.fromkeys(row.variant for row in layout):
            found = {
                row: results[variant, row.method, metric.key].values
                for row in layout
                if row.variant == variant
                and row.method not in SANITY_METHODS
                and (variant, row.method, metric.key) in results
            }
            shared = sorted(set.intersection(*(set(values.columns) for values in found.values()))) if found else []
            if len(found) < 2 or not shared:
                continue
            # Rounded as it is printed: what looks equal has one rank.
            means = {
                row: round(float(values[shared].to_numpy().mean()), PERCENT_DIGITS) for row, values in found.items()
            }
            ranked = sorted(set(means.values()), reverse=metric.higher_is_better)[:2]
            for row, mean in means.items():
                if mean in ranked:
                    ranks[row, metric.key] = ("best", "second")[ranked.index(mean)]
    return ranks


def _verdict(
    result: _Result | None, published: float | None, *, comparable: bool, trained: bool, published_images: int
) -> tuple[float | str, str]:
    """Difference and verdict of one value, by the rule in :func:`build_table`."""
    if result is None:
        return NOT_RUN, NOT_RUN
    if published is None:
        return NOT_PUBLISHED, NOT_PUBLISHED
    if not comparable:
        return NOT_COMPARABLE, NOT_COMPARABLE
    estimate = result.estimate
    difference = float(estimate.mean) - published
    if trained and estimate.replicates < 2:
        return difference, ONE_TRAINING
    tolerance = _tolerance(result, published_images)
    # With one image there is no error to compare with.
    if tolerance is None:
        return NOT_COMPARABLE, NOT_COMPARABLE
    if abs(difference) <= tolerance:
        return difference, "agrees"
    return difference, "above" if difference > 0 else "below"


def _tolerance(result: _Result, published_images: int) -> float | None:
    """The largest difference from a published value that chance explains, ``None`` if it is not known."""
    images = result.values.mean(axis=1).to_numpy()
    if len(images) < 2:
        return None
    of_published = images.std(ddof=1) / np.sqrt(published_images)
    error = result.estimate.standard_error
    # The quantile is that of our own interval. Without an error of ours only the images are left.
    half = (result.estimate.high - result.estimate.low) / 2
    quantile = half / error if error > 0 else stats.t.ppf((1 + LEVEL) / 2, len(images) - 1)
    return float(quantile * np.hypot(error, of_published))
