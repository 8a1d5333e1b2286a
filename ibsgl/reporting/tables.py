"""Tables 1–4: our value beside the published one, with interval, rank, difference and verdict.

Values are fractions in the score files and percentages from here on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from ibsgl.metrics import METRICS, Metric
from ibsgl.reporting.columns import PAIR
from ibsgl.reporting.published import (
    check_number,
    comparable_settings,
    data_set,
    deviations,
    read_published,
    read_published_settings,
)
from ibsgl.reporting.scores import check_pairs
from ibsgl.reporting.statistics import bootstrap_intervals
from ibsgl.training.variants import VARIANTS

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

NOT_RUN = "not run"
NOT_PUBLISHED = "not published"
NOT_COMPARABLE = "not comparable"
VERDICT_RULE = (
    "Verdict: a value is comparable only if the run has none of the deviations above; then it is 'within interval' if "
    "the published value lies in our 95 % interval, otherwise 'above' or 'below', as ours is above or below it."
)


class _Row(NamedTuple):
    section: Literal["main", "extra"]
    label: str
    variant: str
    method: str


def table_metrics(number: int) -> list[type[Metric]]:
    """The metrics of table ``number``, in the paper's order."""
    check_number(number)
    table = "localization" if number in (1, 2) else "faithfulness"
    return [metric for metric in METRICS.values() if metric.table == table]


def table_of_run(
    scores: pd.DataFrame, number: int, config: Config, model: str, published_dir: str | Path
) -> pd.DataFrame:
    """Table ``number`` of a run, compared with the published settings and values; see :func:`build_table`.

    Args:
        scores: those of :func:`ibsgl.reporting.scores.read_scores`, only rows of ``model``.
        number: 1 to 4.
        config: the config of the run.
        model: the network that the table is about.
        published_dir: folder with ``table1.csv`` … ``table4.csv`` and ``settings.yaml``.
    """
    reference = read_published_settings(published_dir, number)
    settings = comparable_settings(config, model) | {"data": data_set(scores, config.name, reference)}
    return build_table(
        scores,
        number,
        published_dir,
        seed=config.seed,
        deviations=deviations(settings, reference),
        average=config.tables.average,
        resamples=config.tables.resamples,
    )


def build_table(
    scores: pd.DataFrame,
    number: int,
    published_dir: str | Path,
    *,
    seed: int,
    deviations: Sequence[str],
    average: Literal["pairs", "classes"] = "pairs",
    resamples: int = 10000,
) -> pd.DataFrame:
    """Table ``number`` with one row per (variant, method, metric).

    Args:
        scores: rows of one model, as :func:`ibsgl.reporting.scores.read_scores` returns them.
        number: 1 and 2 are the localisation tables of the first and second model, 3 and 4 the faithfulness tables.
        published_dir: folder with ``table1.csv`` … ``table4.csv``.
        seed: root seed of the bootstrap.
        deviations: how the run differs from the published settings (:func:`ibsgl.reporting.published.deviations`).
        average: ``pairs``, the mean over (image, class) pairs; ``classes``, the mean over the classes' means.
        resamples: number of resamples of the bootstrap, in which images are resampled.

    Returns:
        Columns ``section`` ("main", "extra"), ``row`` (label), ``variant``, ``method``, ``metric`` (key), ``value``,
        ``low``, ``high`` (percent, 95 % interval; "not run" in all three where there are no scores), ``n_pairs``,
        ``n_images``, ``rank`` ("best", "second", "": among the main rows that were run, ties share), ``published``
        (percent or "not published"), ``difference`` (ours − published, percentage points, or why there is none),
        ``verdict``, ``source`` (of the published value). ``attrs`` has what the caption needs.

        Verdict: "not run" without scores; "not published" without a published value; "not comparable" if ``deviations``
        is not empty; otherwise "within interval" if the published value lies in [low, high], else "above" or "below",
        as ours is above or below the published value.

    Raises:
        ValueError: no scores, several models, unequal (image, class) pairs, or values that are not finite.
    """
    metrics = table_metrics(number)
    if average not in ("pairs", "classes"):
        raise ValueError(f"average must be 'pairs' or 'classes', not {average!r}")
    models = sorted(scores["model"].unique())
    if len(models) != 1:
        raise ValueError(f"a table needs the scores of one model, not of {len(models)}: {', '.join(models) or 'none'}")
    check_pairs(scores)
    published = read_published(published_dir, number)
    printed = published.set_index(["variant", "method", "metric"])
    layout = _row_layout(published, scores)
    scored = {group: rows.sort_values(PAIR) for group, rows in scores.groupby(["variant", "method"])}
    pairs = next(iter(scored.values()))[PAIR]
    n_pairs, n_images = len(pairs), pairs["image_id"].nunique()

    keys, columns = [], []
    for (variant, method), rows in scored.items():
        for metric in metrics:
            column = rows[metric.key].to_numpy(dtype=np.float64)
            if not np.isfinite(column).all():
                raise ValueError(f"{models[0]}/{variant}/{method}: {metric.key} has values that are NaN or infinite")
            keys.append((variant, method, metric.key))
            columns.append(column)
    values, classes = np.column_stack(columns), pairs["class_name"].to_numpy()
    by_class = average == "classes"
    means = np.mean([values[classes == c].mean(0) for c in np.unique(classes)], 0) if by_class else values.mean(0)
    low, high = bootstrap_intervals(
        values, pairs["image_id"], seed=seed, resamples=resamples, groups=classes if by_class else None
    )
    ours = {
        key: (100 * float(mean), 100 * float(lowest), 100 * float(highest))
        for key, mean, lowest, highest in zip(keys, means, low, high, strict=True)
    }
    ranks = _ranks(layout, metrics, ours)

    table_rows = []
    for row in layout:
        for metric in metrics:
            key = (row.variant, row.method, metric.key)
            estimate = ours.get(key)
            published_value = float(printed.loc[key, "value"]) if key in printed.index else None
            difference, verdict = _verdict(estimate, published_value, comparable=not deviations)
            table_rows.append(
                {
                    "section": row.section,
                    "row": row.label,
                    "variant": row.variant,
                    "method": row.method,
                    "metric": metric.key,
                    **dict(zip(("value", "low", "high"), estimate or (NOT_RUN,) * 3, strict=True)),
                    "n_pairs": n_pairs if estimate else 0,
                    "n_images": n_images if estimate else 0,
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
        "arch": ", ".join(sorted(scores["arch"].unique())),
        "deviations": list(deviations),
        "average": average,
        "n_pairs": n_pairs,
        "n_images": n_images,
    }
    return table


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
            suffix = "" if row.variant == "pretrained" else f", {row.variant} network"
            rows.append(_Row("extra", f"{row.label}{suffix}", row.variant, row.method))
    return rows


def _ranks(
    layout: Sequence[_Row],
    metrics: Sequence[type[Metric]],
    ours: dict[tuple[str, str, str], tuple[float, float, float]],
) -> dict[tuple[_Row, str], str]:
    """By row and metric, "best" and "second" among the main rows that were run. Equal values share a rank."""
    ranks = {}
    for metric in metrics:
        main = {row: ours.get((row.variant, row.method, metric.key)) for row in layout if row.section == "main"}
        values = {row: estimate[0] for row, estimate in main.items() if estimate}
        ranked = sorted(set(values.values()), reverse=metric.higher_is_better)[:2]
        for row, value in values.items():
            if value in ranked:
                ranks[row, metric.key] = ("best", "second")[ranked.index(value)]
    return ranks


def _verdict(
    estimate: tuple[float, float, float] | None, published: float | None, *, comparable: bool
) -> tuple[float | str, str]:
    """Difference and verdict of one value with its interval, by the rule in :func:`build_table`."""
    if estimate is None:
        return NOT_RUN, NOT_RUN
    if published is None:
        return NOT_PUBLISHED, NOT_PUBLISHED
    if not comparable:
        return NOT_COMPARABLE, NOT_COMPARABLE
    value, low, high = estimate
    if low <= published <= high:
        return value - published, "within interval"
    return value - published, "above" if value > published else "below"
