"""Further metrics as a table: value, interval, rank and published value; and how far the metrics' rankings agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
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
from ibsgl.reporting.tables import METRIC_DIGITS, NOT_COMPARABLE, PERCENT_DIGITS
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


def check_run(files: MetricFiles, measurements: Measurements) -> None:
    """``ValueError`` that names a file unless the further metrics are of the network and the data of ``measurements``."""
    run = measurements.metadata
    for path, found in files.facts.items():
        weights = run.get("replicates", {}).get(found["replicate"], {}).get("weights_digest", {})
        for key, value, known in (
            ("model", found["model"], measurements.model),
            ("data_digest", found["data_digest"], run.get("data_digest")),
            ("seed", found["settings"].get("seed"), run.get("seed")),
            ("class_names", found.get("class_names"), run.get("class_names")),
            # Metrics of stored maps have no network.
            ("weights_digest", found.get("weights_digest"), weights.get(found["variant"])),
        ):
            if value != known and not (key == "weights_digest" and value is None):
                raise ValueError(
                    f"{path} has the {key} {value!r}, and the evaluation has {known!r}; give files of one run and network"
                )


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
        ``high`` (95 % interval over images and replicates, in the metric's range), ``replicates``, ``images``, ``pairs`` that
        have a value in all replicates, ``left_out``, the number of the others, ``ranked_value`` (mean over the pairs that all
        ranked methods of the variant have, rounded as printed; NaN for sanity methods and without a value) and
        ``ranked_pairs``, their number, ``rank`` (of that value, 1 is best, among the methods of one variant and metric; NaN
        where no value is better than another too), ``mark``, ``published`` (in the value's unit, or "not comparable", or
        empty) with its ``source``, and ``reason``, why there are no values.
    """
    printed = _published(measurements, config, model, published_dir)
    metrics = metrics_in(config)
    groups = dict(iter(files.values.groupby(["variant", "method", "metric"], sort=False)))
    rows: list[dict[str, Any]] = []
    known: dict[tuple[str, str, str], pd.DataFrame] = {}
    for variant in config.methods_on.variants:
        for method in config.methods_of(variant):
            name = attribution.row(method, config.method_settings(method)).label
            for row, use, label, metric in metrics:
                if (variant, method, row) not in groups:
                    raise ValueError(
                        f"{model}: there are no values of {row} for {method} on {variant}; measure them again"
                    )
                facts = {"variant": variant, "method": method, "label": name, "metric": row}
                wide = groups[variant, method, row].pivot(index=PAIR, columns="replicate", values="value")
                known[variant, method, row] = wide.dropna()
                found = _estimate(wide, metric)
                value, source = printed(metric, use, variant, method)
                marked = found["pairs"] > 0 and hasattr(metric, "mark")
                rows.append(
                    facts
                    | {"metric_label": label, **found, "ranked_value": np.nan, "ranked_pairs": 0, "rank": np.nan}
                    | {"mark": metric.mark(found["value"]) if marked else ""}
                    | {"published": value, "source": source, "reason": files.reasons.get((row, variant, method), "")}
                )
    table = pd.DataFrame(rows)
    for row, _, _, metric in metrics:
        ranked = table[(table["metric"] == row) & ~table["method"].isin(SANITY_METHODS) & (table["pairs"] > 0)]
        for variant, cells in ranked.groupby("variant"):
            values = [known[variant, method, row] for method in cells["method"]]
            shared = reduce(pd.Index.intersection, (value.index for value in values))
            table.loc[cells.index, "ranked_pairs"] = len(shared)
            if not len(shared):
                continue
            # Rounded as it is printed: what looks equal has one rank.
            means = [
                round(float(_images(value.loc[shared], metric).mean(axis=None)), METRIC_DIGITS) for value in values
            ]
            table.loc[cells.index, "ranked_value"] = means
            if metric.higher_is_better is not None:
                places = pd.Series(means, cells.index).rank(method="min", ascending=not metric.higher_is_better)
                table.loc[cells.index, "rank"] = places
    return table


def _average(metric: FurtherMetric) -> Literal["pairs", "classes"]:
    """What the metric's value is the mean over."""
    return getattr(metric, "average", "pairs")


def _images(known: pd.DataFrame, metric: FurtherMetric) -> pd.DataFrame:
    """Values of pairs × replicates → images × replicates, such that the mean over images is the metric's value."""
    return image_values(known.stack().rename("value").reset_index(), "value", _average(metric))


def _estimate(wide: pd.DataFrame, metric: FurtherMetric) -> dict[str, Any]:
    """Value, interval and numbers of one cell, from its values of pairs × replicates."""
    known = wide.dropna()
    numbers = {"replicates": wide.shape[1], "pairs": len(known), "left_out": len(wide) - len(known)}
    images = known.index.get_level_values("image_id").nunique()
    if not images:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "images": 0, **numbers}
    estimate = crossed_estimate(_images(known, metric).to_numpy().T)
    low, high = estimate.low, estimate.high
    if getattr(metric, "binary", False) and (wide.shape[1] == 1 or low == high):
        trials = _trials(known, metric)
        low, high = proportion_interval(min(max(estimate.mean, 0.0), 1.0) * trials, trials)
    elif math.isfinite(high - low):
        # Rounding may put a mean at the end of the range beyond it.
        low, high = (min(max(edge, metric.range[0]), metric.range[1]) for edge in (low, high))
        low, high = min(low, estimate.mean), max(high, estimate.mean)
    return {"value": estimate.mean, "low": low, "high": high, "images": images, **numbers}


def _trials(known: pd.DataFrame, metric: FurtherMetric) -> float:
    """How many images of equal weight have the variance of these (Kish): in a mean over classes rare ones weigh more."""
    if _average(metric) == "pairs":
        weights = pd.Series(1.0, known.index)
    else:
        weights = 1 / known.groupby("class_name")[known.columns[0]].transform("size")
    weights = weights.groupby("image_id").sum()
    return float(weights.sum() ** 2 / (weights**2).sum())


def _published(measurements: Measurements, config: Config, model: str, published_dir: str | Path) -> Any:
    """A function (metric, its registered name, variant, method) → published value and source; both empty without one.

    A published value is comparable on its own test set and with the networks that it was measured on, as they were downloaded.
    That of the centre needs no network.
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
        # The centre needs no network.
        needed = ("data", "difficult") if method == "center" else same
        if not all(same[key] for key in needed) or metric != further.get(use):
            return NOT_COMPARABLE, row.source
        return row.value / 100, row.source

    return look_up


def agreement_table(table: pd.DataFrame, measurements: Measurements, config: Config) -> pd.DataFrame:
    """Kendall's τ-b between the rankings of the methods by each two metrics, those of Tables 1–4 included.

    The sanity methods are left out: they are not candidates, and that all metrics put noise last would look like agreement.
    Metrics without a better direction are left out too. Values are those of the replicates of ``methods_on``, rounded as
    printed, and of further metrics those that are ranked: over the pairs that all methods have.

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
                method: sign * round(float(found[list(replicates)].mean(axis=None)), PERCENT_DIGITS)
                for method in methods
                for found in [measurements.values(Quantity(key, variant, method), config.tables.average)]
            },
        )
    for row, _, label, metric in metrics_in(config):
        if metric.higher_is_better is None:
            continue
        cells = table[(table["metric"] == row) & (table["variant"] == variant)].set_index("method")["ranked_value"]
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
        shares = "; on one training, or where all pairs agree, the interval is that of Wilson"
        notes.append(
            f"{label}: `{use}`{f' ({settings})' if settings else ''}; {direction[metric.higher_is_better]}; from "
            f"{of[metric.requires]}; mean over the {mean}{shares if getattr(metric, 'binary', False) else ''}."
        )
        cells = table[table["metric"] == row]
        for reason, without in cells[cells["reason"] != ""].groupby("reason", sort=False):
            notes.append(f"{label}: no values for {', '.join(without['label'].unique())}: {reason}.")
        for mark, marked in cells[cells["mark"] != ""].groupby("mark", sort=False):
            limit = getattr(metric, "threshold", None)
            since = f", from a mean of {limit:g} on" if limit is not None else ""
            names = ", ".join(marked["label"].unique())
            notes.append(f'Marked "{mark}" by {label}{since}: {names}. {getattr(metric, "caution", "")}'.rstrip())
        ranked = cells[~cells["method"].isin(SANITY_METHODS) & (cells["ranked_pairs"] < cells["pairs"])]
        for variant, short in ranked.groupby("variant", sort=False):
            number = short["ranked_pairs"].iloc[0]
            over = f"the ranks are over the {number} pairs that all ranked methods have"
            none = "no pair has a value of every ranked method, so there are no ranks"
            notes.append(f"{label} on {variant}: {over if number else none}.")
    if sources := [source for source in table["source"].unique() if source]:
        notes.append(
            f"Published values: {'; '.join(sources)}. They are comparable only on that test set with those networks. The "
            "settings of the methods are not compared."
        )
    return notes
