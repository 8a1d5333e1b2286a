"""Further metrics as a table: value, interval, rank and published value; and how far the metrics' rankings agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from ibsgl import attribution
from ibsgl.config.schema import SANITY_METHODS
from ibsgl.metrics import METRICS, further
from ibsgl.metrics.further import FurtherMetric
from ibsgl.reporting.columns import PAIR
from ibsgl.reporting.measurements import Measurements, Quantity, image_values
from ibsgl.reporting.metric_files import MetricFiles
from ibsgl.reporting.published import comparable_settings, data_set, read_published_settings
from ibsgl.reporting.statistics import crossed_estimate, proportion_interval
from ibsgl.reporting.tables import NOT_COMPARABLE
from ibsgl.training.variants import PRETRAINED

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

# With two methods τ is 1 or −1 whatever is measured.
MINIMUM_METHODS = 3


class _Metric(NamedTuple):
    row: str
    use: str
    label: str
    # A FurtherMetric, which may have more methods than its protocol.
    metric: Any


def metrics_in(config: Config) -> list[_Metric]:
    """The further metrics of ``config``, with their settings, in its order."""
    found = []
    for row in config.further_metrics:
        use, settings, label = config.further_metric(row)
        metric = further.get(use, **settings)
        found.append(_Metric(row, use, label or metric.label, metric))
    labels = [metric.label for metric in found] + [_label(key) for key in METRICS]
    # Two rows may be one metric with different settings.
    return [one._replace(label=f"{one.label}, {one.row}") if labels.count(one.label) > 1 else one for one in found]


def _label(key: str) -> str:
    """The label of a metric of Tables 1–4."""
    return METRICS[key].label.removesuffix("(%)")


def metric_table(
    files: MetricFiles, measurements: Measurements, config: Config, model: str, published_dir: str | Path
) -> pd.DataFrame:
    """The further metrics of every method on every variant of ``methods_on``.

    Args:
        files: the values of one network.
        measurements: of the same network.
        config: of the run.
        model: the network's name.
        published_dir: folder with ``metrics.csv`` and ``settings.yaml``.

    Returns:
        one row per (variant, method, metric): ``variant``, ``method``, ``label``, ``metric`` (the config's name),
        ``metric_label``, ``value`` (mean over the pairs or the classes, and the replicates; NaN without values), ``low`` and
        ``high`` (95 % interval over images and replicates), ``replicates``, ``images``, ``pairs`` that have a value in all
        replicates, ``left_out``, the number of the others, ``rank`` (1 is best, among the methods of one variant and metric;
        NaN for sanity methods, without a value, and where no value is better than another), ``mark``, ``published`` (in the
        value's unit, or "not comparable", or empty) with its ``source``, and ``reason``, why there are no values.
    """
    printed = _published(measurements, config, model, published_dir)
    metrics = metrics_in(config)
    groups = dict(iter(files.values.groupby(["variant", "method", "metric"], sort=False)))
    rows: list[dict[str, Any]] = []
    for variant in config.methods_on.variants:
        for method in config.methods_of(variant):
            name = attribution.row(method, config.method_settings(method)).label
            for row, use, label, metric in metrics:
                if (variant, method, row) not in groups:
                    raise ValueError(
                        f"{model}: there are no values of {row} for {method} on {variant}; measure them again"
                    )
                facts = {"variant": variant, "method": method, "label": name, "metric": row}
                found = _estimate(groups[variant, method, row], metric)
                value, source = printed(metric, use, variant, method)
                known = found["pairs"] > 0 and hasattr(metric, "mark")
                rows.append(
                    facts
                    | {"metric_label": label, **found, "rank": np.nan}
                    | {"mark": metric.mark(found["value"]) if known else ""}
                    | {"published": value, "source": source, "reason": files.reasons.get((row, variant, method), "")}
                )
    table = pd.DataFrame(rows)
    for row, _, _, metric in metrics:
        if metric.higher_is_better is None:
            continue
        ranked = table[(table["metric"] == row) & ~table["method"].isin(SANITY_METHODS)]
        for _, values in ranked.groupby("variant")["value"]:
            table.loc[values.index, "rank"] = values.rank(method="min", ascending=not metric.higher_is_better)
    return table


def _average(metric: FurtherMetric) -> Literal["pairs", "classes"]:
    """What the metric's value is the mean over."""
    return getattr(metric, "average", "pairs")


def _estimate(rows: pd.DataFrame, metric: FurtherMetric) -> dict[str, Any]:
    """Value, interval and numbers of one cell, from one row per (replicate, pair)."""
    wide = rows.pivot(index=PAIR, columns="replicate", values="value")
    known = wide.dropna()
    numbers = {"replicates": wide.shape[1], "pairs": len(known), "left_out": len(wide) - len(known)}
    images = known.index.get_level_values("image_id").nunique()
    if not images:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "images": 0, **numbers}
    kept = known.stack().rename("value").reset_index()
    estimate = crossed_estimate(image_values(kept, "value", _average(metric)).to_numpy().T)
    low, high = estimate.low, estimate.high
    if low == high and getattr(metric, "binary", False):
        # All images are equal. The variance is zero, but the uncertainty is not.
        low, high = proportion_interval(estimate.mean * images, images)
    return {"value": estimate.mean, "low": low, "high": high, "images": images, **numbers}


def _published(measurements: Measurements, config: Config, model: str, published_dir: str | Path) -> Any:
    """A function (metric, its registered name, variant, method) → published value and source; both empty without one.

    A published value is comparable on its own test set and with the networks that it was measured on, as they were downloaded.
    Settings of the methods are not compared.
    """
    printed = pd.read_csv(Path(published_dir) / "metrics.csv", keep_default_na=False)
    arch = config.models[model].arch
    reference = read_published_settings(published_dir, 1)
    settings = comparable_settings(config, model)
    images = measurements.scores["image_id"].nunique()
    name = data_set(images, measurements.metadata["class_names"], config.name, reference)
    same = {
        "data": name == reference["data"],
        "difficult": settings.get("difficult") == reference["difficult"],
        "network": settings["network"]["source"] == reference["network"]["source"],
        "trained": settings["classifier"]["epochs"] == 0,
    }

    def look_up(metric: FurtherMetric, use: str, variant: str, method: str) -> tuple[float | str, str]:
        rows = printed[(printed["metric"] == use) & (printed["arch"] == arch) & (printed["method"] == method)]
        if rows.empty or variant != PRETRAINED:
            return "", ""
        (row,) = rows.itertuples()
        if not all(same.values()) or metric != further.get(use):
            return NOT_COMPARABLE, row.source
        return row.value / 100, row.source

    return look_up


def agreement_table(table: pd.DataFrame, measurements: Measurements, config: Config) -> pd.DataFrame:
    """Kendall's τ-b between the rankings of the methods by each two metrics, those of Tables 1–4 included.

    The sanity methods are left out: they are not candidates, and that all metrics put noise last would look like agreement.
    Metrics without a better direction are left out too. Values are those of the replicates of ``methods_on``.

    Returns:
        one row per variant and two metrics: ``variant``, ``first``, ``second`` (labels), ``tau`` in [-1,1], 1 for the same
        ranking (NaN with fewer than three methods, or if all have one value), and ``methods``, how many have both values.
    """
    rows = []
    for variant in config.methods_on.variants:
        scores = pd.DataFrame(dict(_scores(table, measurements, config, variant)))
        for first, second in combinations_with_replacement(scores.columns, 2):
            both = scores[[first, second]].dropna() if first != second else scores[[first]].dropna()
            tau = np.nan
            if len(both) >= MINIMUM_METHODS:
                tau = float(kendalltau(both.iloc[:, 0], both.iloc[:, -1]).statistic)
            rows.append({"variant": variant, "first": first, "second": second, "tau": tau, "methods": len(both)})
    return pd.DataFrame(rows, columns=["variant", "first", "second", "tau", "methods"])


def _scores(
    table: pd.DataFrame, measurements: Measurements, config: Config, variant: str
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Each metric's label and its value for each method, with the sign that makes a higher value better."""
    methods = [method for method in config.methods_of(variant) if method not in SANITY_METHODS]
    replicates = range(config.methods_on.replicates)
    for key, paper in METRICS.items():
        sign = 1 if paper.higher_is_better else -1
        yield (
            _label(key),
            {
                method: sign
                * measurements.values(Quantity(key, variant, method), config.tables.average)[list(replicates)].mean(
                    axis=None
                )
                for method in methods
            },
        )
    for row, _, label, metric in metrics_in(config):
        if metric.higher_is_better is None:
            continue
        cells = table[(table["metric"] == row) & (table["variant"] == variant)].set_index("method")["value"]
        yield label, {method: (1 if metric.higher_is_better else -1) * cells[method] for method in methods}


def metric_notes(table: pd.DataFrame, config: Config) -> list[str]:
    """The sentences below the table: what each metric is, who has no values, and what the marks mean."""
    notes = []
    for row, use, label, metric in metrics_in(config):
        own = config.further_metric(row).settings
        settings = "; ".join(f"{key} {value}" for key, value in own.items())
        direction = {True: "higher is better", False: "lower is better", None: "no value is better than another"}
        mean = "classes' means" if _average(metric) == "classes" else "pairs"
        of = {
            "maps": "the stored maps",
            "network": "the stored maps and the network",
            "method": "the method, called again",
        }
        notes.append(
            f"{label}: `{use}`{f' ({settings})' if settings else ''}; {direction[metric.higher_is_better]}; from "
            f"{of[metric.requires]}; mean over the {mean}."
        )
        cells = table[table["metric"] == row]
        for reason, without in cells[cells["reason"] != ""].groupby("reason", sort=False):
            notes.append(f"{label}: no values for {', '.join(without['label'].unique())}: {reason}.")
        if (marked := cells[cells["mark"] != ""]).size:
            names = ", ".join(dict.fromkeys(f"{cell.label} ({cell.mark})" for cell in marked.itertuples()))
            limit = getattr(metric, "threshold", None)
            notes.append(f"Marked by {label}{f', from a mean of {limit:g} on' if limit is not None else ''}: {names}.")
    if sources := [source for source in table["source"].unique() if source]:
        notes.append(
            f"Published values: {'; '.join(sources)}. They are comparable only on that test set with those networks. The "
            "settings of the methods are not compared."
        )
    return notes
