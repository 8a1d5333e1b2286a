"""Tables 1–4 from score files: ours beside the published figure, with interval, rank, difference and verdict.

:func:`read_scores` refuses files that do not belong together, :func:`build_table` makes one tidy row per cell, and the
writers lay that out as the paper does. Values are fractions in the score files and percentages from here on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
import yaml

from ibsgl.metrics import METRICS, Metric
from ibsgl.metrics.classification import accuracy, average_precision, average_precision_11, mean_average_precision
from ibsgl.randomness import derive_seed
from ibsgl.statistics import bootstrap_interval, paired_interval

NOT_RUN = "not run"
NOT_PUBLISHED = "not published"
NOT_COMPARABLE = "not comparable"
VERDICT_RULE = (
    "Verdict: a figure is comparable only if the run has none of the deviations above; then it is 'within interval' if "
    "the published value lies in our 95 % interval, otherwise 'above' or 'below', as ours is above or below it."
)
SEEDS_LINE = "seeds: 1; the intervals are over test images, not over training runs."

COLUMNS = (
    "model",
    "arch",
    "network",
    "method",
    "label",
    "image_id",
    "class_name",
    "target",
    *METRICS,
    "p_full",
    "p_kept",
)
NETWORKS = ("pretrained", "guided", "control")
_PAIR = ["image_id", "class_name"]
_GROUP = ["model", "network", "method"]


# Reading ------------------------------------------------------------------------------------------------------------


def read_scores(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Score files as one frame, sorted by model, network, method, image and class, with a column ``file``.

    Args:
        paths: Parquet files with :data:`COLUMNS`, one row per (network, method, image, class), whose schema metadata
            has the key ``ibsgl``: JSON with at least ``data_digest``, ``seed``, ``class_names`` and ``weights_digest``.

    Returns:
        The frame; ``attrs["metadata"]`` maps each file to its JSON.

    Raises:
        ValueError: a file lacks its record or a column; files disagree on data, seed or classes; one network was
            scored with different weights; or two groups were not scored on the same (image, class) pairs. Files
            and values are named.
    """
    frames, records = [], {}
    for path in sorted(str(path) for path in paths):
        table = pq.read_table(path)
        record = (table.schema.metadata or {}).get(b"ibsgl")
        if record is None:
            raise ValueError(f"{path} has no 'ibsgl' record in its metadata; it was not written by the scoring step")
        records[path] = json.loads(record)
        absent = [column for column in COLUMNS if column not in table.column_names]
        if absent:
            raise ValueError(f"{path} lacks the columns {', '.join(absent)}; score again to write it anew")
        frames.append(table.to_pandas().assign(file=path))
    if not frames:
        raise ValueError("there are no score files to make a table of")
    for key in ("data_digest", "seed", "class_names"):
        _check_agreement(key, [(path, record.get(key)) for path, record in records.items()])
    scores = pd.concat(frames, ignore_index=True)
    for (model, network), rows in scores.groupby(["model", "network"], sort=True):
        values = [(path, records[path].get("weights_digest")) for path in rows["file"].unique()]
        _check_agreement(f"weights_digest of {model}'s {network} network", values)
    _check_pairs(scores)
    scores = scores.sort_values([*_GROUP, *_PAIR], kind="stable", ignore_index=True)
    scores.attrs["metadata"] = records
    return scores


def _check_agreement(key: str, values: list[tuple[str, object]]) -> None:
    """Raise unless all files give ``key`` one value, naming one file for each value."""
    first = {}
    for path, value in values:
        first.setdefault(json.dumps(value, sort_keys=True), path)
    if len(first) > 1:
        found = "; ".join(f"{path} has {value}" for value, path in first.items())
        raise ValueError(f"the score files disagree on {key}: {found}; score again what is out of date")


def _check_pairs(scores: pd.DataFrame) -> None:
    """Raise unless every (model, network, method) has each (image, class) pair of the first one exactly once."""
    reference = None
    for group, rows in scores.groupby(_GROUP, sort=True):
        files = f" ({', '.join(rows['file'].unique())})" if "file" in rows else ""
        name = f"{'/'.join(group)}{files}"
        pairs = pd.MultiIndex.from_frame(rows[_PAIR])
        if pairs.has_duplicates:
            raise ValueError(f"{name} has several rows for {pairs[pairs.duplicated()][0]}; was a file given twice?")
        if reference is None:
            reference = name, pairs
        different = pairs.symmetric_difference(reference[1])
        if len(different):
            raise ValueError(
                f"{name} and {reference[0]} were not scored on the same (image, class) pairs: {len(different)} are in "
                f"one only, such as {different[0]}; score again what is incomplete"
            )


def _check_number(number: int) -> None:
    if number not in (1, 2, 3, 4):
        raise ValueError(f"there are Tables 1, 2, 3 and 4, not {number}")


def read_published(published_dir: str | Path, number: int) -> pd.DataFrame:
    """Table ``number`` as printed: method, network, label, metric, value (percent), marking, in_paper, source."""
    _check_number(number)
    return pd.read_csv(Path(published_dir) / f"table{number}.csv", dtype={"in_paper": bool}, keep_default_na=False)


def read_published_settings(published_dir: str | Path, number: int) -> dict:
    """The settings behind table ``number``: ``settings.yaml``'s common part with its model's, and the ``labels``."""
    _check_number(number)
    content = yaml.safe_load((Path(published_dir) / "settings.yaml").read_text(encoding="utf-8"))
    settings = copy.deepcopy(content["common"])
    for key, value in content["first" if number in (1, 3) else "second"].items():
        if isinstance(value, dict):
            settings.setdefault(key, {}).update(value)
        else:
            settings[key] = value
    return {**settings, "labels": content["labels"], "test_set": content["test_set"]}


def data_set(scores: pd.DataFrame, name: str, published: dict) -> str:
    """What the scores were made on: the published data set's name if classes and size are its own, else ``name``.

    Recognised by its class names and its number of test images, so that a borrowed name does not make figures comparable.
    """
    record = next(iter(scores.attrs["metadata"].values()))
    known = published["test_set"]
    if record["class_names"] == known["class_names"] and scores["image_id"].nunique() == known["images"]:
        return published["data"]
    return f"{name} ({scores['image_id'].nunique()} test images, {len(record['class_names'])} classes)"


def deviations(settings: dict, published: dict) -> list[str]:
    """How ``settings`` differ from the published ones, a sentence each: "RISE masks 500 instead of 8000".

    Args:
        settings: nested, with the keys of ``published``; further keys are not looked at.
        published: nested; its top-level ``labels`` maps dotted keys to what people call them, and ``test_set`` describes
            the published data for :func:`data_set`.

    Returns:
        One sentence per differing or absent setting of the sections that ``settings`` has, in the order of
        ``published``; empty if the run is comparable.
    """
    labels = published.get("labels", {})

    def compare(given: object, expected: dict, path: tuple[str, ...]) -> Iterable[str]:
        for key, value in expected.items():
            here = (*path, key)
            ours = given.get(key) if isinstance(given, dict) else None
            if isinstance(value, dict):
                # A method that was not run says so in its row.
                yield from () if ours is None else compare(ours, value, here)
            elif ours != value:
                name = labels.get(".".join(here), " ".join(here).replace("_", " "))
                yield f"{name} {'not set' if ours is None else ours} instead of {value}"

    described = ("labels", "test_set")
    return list(compare(settings, {key: value for key, value in published.items() if key not in described}, ()))


# Building -----------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    section: Literal["main", "extra"]
    label: str
    network: str
    method: str


def table_metrics(number: int) -> list[Metric]:
    """The metrics of table ``number``, in the paper's order."""
    _check_number(number)
    kind = "localization" if number in (1, 2) else "faithfulness"
    return [metric for metric in METRICS.values() if metric.kind == kind]


def _plan(published: pd.DataFrame, scores: pd.DataFrame) -> list[_Row]:
    """The paper's rows, the rows that this benchmark adds, and whatever else was scored."""
    printed = published.drop_duplicates(["network", "method"])
    paper, beside = printed[printed["in_paper"]], printed[~printed["in_paper"]]
    rows = [_Row("main", row.label, row.network, row.method) for row in paper.itertuples()]
    rows += [_Row("extra", row.label, row.network, row.method) for row in beside.itertuples()]
    rows += [
        _Row("extra", "Eq. 3, unguided network", "pretrained", "gradient"),
        _Row("extra", "Eq. 3, control network", "control", "gradient"),
        _Row("extra", "Information bottleneck (Eq. 9)", "pretrained", "bottleneck"),
    ]
    baselines = paper[paper["network"] == "pretrained"]
    rows += [_Row("extra", f"{row.label}, guided network", "guided", row.method) for row in baselines.itertuples()]
    rows += [
        _Row("extra", "Centre (control)", "pretrained", "center"),
        _Row("extra", "Random (control)", "pretrained", "random"),
        _Row("extra", "Oracle (control)", "pretrained", "oracle"),
    ]
    planned = {(row.network, row.method) for row in rows}
    order = {network: place for place, network in enumerate(NETWORKS)}
    scored = scores.drop_duplicates(["network", "method"])[["network", "method", "label"]].itertuples(index=False)
    for row in sorted(scored, key=lambda row: (order.get(row.network, len(order)), row.network, row.method)):
        if (row.network, row.method) not in planned:
            suffix = "" if row.network == "pretrained" else f", {row.network} network"
            rows.append(_Row("extra", f"{row.label}{suffix}", row.network, row.method))
    return rows


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
    """Table ``number``, one row per cell.

    Args:
        scores: rows of one model, as :func:`read_scores` gives them.
        number: 1 and 2 are the localisation tables of the first and second model, 3 and 4 the faithfulness tables.
        published_dir: folder with ``table1.csv`` … ``table4.csv``.
        seed: root seed of the bootstrap.
        deviations: how the run differs from the published settings (:func:`deviations`).
        average: ``pairs``, the mean over (image, class) pairs; ``classes``, the mean over the classes' means.
        resamples: of the bootstrap, in which images are resampled.

    Returns:
        Columns ``section`` ("main", "extra"), ``row`` (label), ``network``, ``method``, ``metric`` (key), ``value``,
        ``low``, ``high`` (percent, 95 % interval; "not run" in all three where there are no scores), ``n_pairs``,
        ``n_images``, ``rank`` ("best", "second", "": among the main rows that were run, ties share), ``published``
        (percent or "not published"), ``difference`` (ours − published, percentage points, or why there is none),
        ``verdict``, ``source`` (of the published figure). What a caption needs is in ``attrs``.

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
        raise ValueError(f"a table is of one model; these scores are of {len(models)}: {', '.join(models) or 'none'}")
    _check_pairs(scores)
    published = read_published(published_dir, number)
    printed = published.set_index(["network", "method", "metric"])
    plan = _plan(published, scores)
    scored = {group: rows.sort_values(_PAIR) for group, rows in scores.groupby(["network", "method"])}
    pairs = next(iter(scored.values()))[_PAIR]
    n_pairs, n_images = len(pairs), pairs["image_id"].nunique()

    keys, columns = [], []
    for (network, method), rows in scored.items():
        for metric in metrics:
            column = rows[metric.key].to_numpy(dtype=np.float64)
            if not np.isfinite(column).all():
                raise ValueError(f"{models[0]}/{network}/{method}: {metric.key} has values that are NaN or infinite")
            keys.append((network, method, metric.key))
            columns.append(column)
    values, classes = np.column_stack(columns), pairs["class_name"].to_numpy()
    by_class = average == "classes"
    means = np.mean([values[classes == c].mean(0) for c in np.unique(classes)], 0) if by_class else values.mean(0)
    low, high = bootstrap_interval(
        values, pairs["image_id"], seed=seed, resamples=resamples, groups=classes if by_class else None
    )
    ours = {key: tuple(100 * float(part) for part in cell) for key, *cell in zip(keys, means, low, high, strict=True)}

    ranks = {}
    for metric in metrics:
        main = {row: ours.get((row.network, row.method, metric.key)) for row in plan if row.section == "main"}
        found = sorted({cell[0] for cell in main.values() if cell}, reverse=metric.higher_is_better)[:2]
        for row, cell in main.items():
            if cell and cell[0] in found:
                ranks[row, metric.key] = ("best", "second")[found.index(cell[0])]

    cells = []
    for row in plan:
        for metric in metrics:
            key = (row.network, row.method, metric.key)
            cell = ours.get(key)
            figure = float(printed.loc[key, "value"]) if key in printed.index else None
            difference, verdict = _verdict(cell, figure, comparable=not deviations)
            cells.append(
                {
                    "section": row.section,
                    "row": row.label,
                    "network": row.network,
                    "method": row.method,
                    "metric": metric.key,
                    **dict(zip(("value", "low", "high"), cell or (NOT_RUN,) * 3, strict=True)),
                    "n_pairs": n_pairs if cell else 0,
                    "n_images": n_images if cell else 0,
                    "rank": ranks.get((row, metric.key), ""),
                    "published": NOT_PUBLISHED if figure is None else figure,
                    "difference": difference,
                    "verdict": verdict,
                    "source": NOT_PUBLISHED if figure is None else printed.loc[key, "source"],
                }
            )
    table = pd.DataFrame(cells).astype(dict.fromkeys(("value", "low", "high", "published", "difference"), object))
    table.attrs = {
        "number": number,
        "arch": ", ".join(sorted(scores["arch"].unique())),
        "deviations": list(deviations),
        "average": average,
        "n_pairs": n_pairs,
        "n_images": n_images,
    }
    return table


def _verdict(
    cell: tuple[float, float, float] | None, figure: float | None, *, comparable: bool
) -> tuple[float | str, str]:
    """Difference and verdict of one cell, by the rule in :func:`build_table`."""
    if cell is None:
        return NOT_RUN, NOT_RUN
    if figure is None:
        return NOT_PUBLISHED, NOT_PUBLISHED
    if not comparable:
        return NOT_COMPARABLE, NOT_COMPARABLE
    value, low, high = cell
    if low <= figure <= high:
        return value - figure, "within interval"
    return value - figure, "above" if value > figure else "below"


def guidance_table(
    effects: pd.DataFrame, predictions: pd.DataFrame, *, multilabel: bool = False, seed: int, resamples: int = 10000
) -> pd.DataFrame:
    """What guidance does to what it optimises: L_CE(L^c, L^ib), L_SS and accuracy, with guided − control.

    On a multi-label set mAP stands in place of the accuracy (:func:`_map_rows`).

    Args:
        effects: held-out training images; ``network``, ``image_id``, ``l_ce``, ``l_ss``.
        predictions: test images; ``network``, ``image_id``, ``correct`` (bool, 0 or 1).
        seed: root seed of the bootstrap, in which images are resampled.
        resamples: of the bootstrap.

    Both frames are of one model and may hold ``class_name`` (several rows an image).

    Returns:
        ``metric`` (l_ce, l_ss: nats and a fraction; accuracy: percent, and percentage points for its difference),
        ``network`` ("pretrained", "guided", "control" as far as present, and "guided - control"), ``value``, ``low``,
        ``high`` (95 %), ``n_rows``, ``n_images``.

    Raises:
        ValueError: a network was not measured on the same rows as the others, or a value is NaN.
    """
    cells = []
    measured = [("l_ce", effects, "l_ce", 1), ("l_ss", effects, "l_ss", 1)]
    if not multilabel:
        measured.append(("accuracy", predictions, "correct", 100))
    for metric, frame, column, scale in measured:
        index = [key for key in _PAIR if key in frame]
        if frame.duplicated([*index, "network"]).any():
            raise ValueError(f"{metric}: more than one row for the same {' and '.join(index)} of a network")
        wide = frame.pivot(index=index, columns="network", values=column).astype(np.float64) * scale
        bad = [network for network in wide if not np.isfinite(wide[network]).all()]
        if bad:
            raise ValueError(f"{metric}: {', '.join(bad)} has NaN, or lacks rows that another network has")
        images = wide.index.get_level_values("image_id")
        count = {"n_rows": len(wide), "n_images": images.nunique()}
        for network in (network for network in NETWORKS if network in wide):
            low, high = bootstrap_interval(wide[network], images, seed=seed, resamples=resamples)
            mean = float(wide[network].mean())
            cells.append({"metric": metric, "network": network, "value": mean, "low": low, "high": high, **count})
        if {"guided", "control"} <= set(wide):
            low, high = paired_interval(wide["guided"], wide["control"], images, seed=seed, resamples=resamples)
            mean = float((wide["guided"] - wide["control"]).mean())
            network = "guided - control"
            cells.append({"metric": metric, "network": network, "value": mean, "low": low, "high": high, **count})
    if multilabel:
        cells += _map_rows(predictions, seed=seed, resamples=min(resamples, 1000))
    return pd.DataFrame(cells)


def classification_table(
    predictions: pd.DataFrame, class_names: Sequence[str], difficult: np.ndarray, *, multilabel: bool
) -> pd.DataFrame:
    """How well every network tells each class.

    Args:
        predictions: test images; ``network`` and one ``logit_<k>``/``label_<k>`` per class, every network's images in the
            same order.
        class_names: K.
        difficult: (N,K) bool, the images that VOC's definition leaves out for a class.

    Returns:
        ``network``, ``class``, ``images`` (that show the class), and ``ap`` and ``ap11`` (:mod:`ibsgl.metrics.classification`)
        on a multi-label set, otherwise ``accuracy``; in percent, NaN for a class that no image shows.
    """
    rows, ignored = [], torch.from_numpy(difficult)
    for network, frame in predictions.groupby("network", sort=False):
        logits, labels = (
            torch.from_numpy(frame[[f"{kind}_{k}" for k in range(len(class_names))]].to_numpy())
            for kind in ("logit", "label")
        )
        right = None if multilabel else accuracy(logits, labels).double()
        for k, name in enumerate(class_names):
            score, label, left_out = logits[:, k], labels[:, k], ignored[:, k]
            row = {"network": network, "class": name, "images": int(label.sum())}
            if multilabel:
                row["ap"] = 100 * average_precision(score, label).item()
                row["ap11"] = 100 * average_precision_11(score, label, left_out).item()
            else:
                row["accuracy"] = 100 * right[label.bool()].mean().item()
            rows.append(row)
    return pd.DataFrame(rows)


def _map_rows(predictions: pd.DataFrame, *, seed: int, resamples: int) -> list[dict]:
    """mAP in percent of every network and of guided − control, images resampled (the same ones for every network).

    ``predictions`` has ``logit_<k>`` and ``label_<k>`` for each class. A resample that lacks a class averages over the others.
    """
    by_network = {}
    for network, rows in predictions.groupby("network"):
        rows = rows.sort_values("image_id")
        logits, labels = (torch.tensor(rows.filter(regex=f"^{kind}_").to_numpy()) for kind in ("logit", "label"))
        by_network[network] = logits, labels
    number = len(next(iter(by_network.values()))[0])
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", "map"))
    draws = [torch.arange(number), *(torch.from_numpy(rng.integers(number, size=number)) for _ in range(resamples))]
    values = {
        network: np.array([100 * mean_average_precision(logits[rows], labels[rows]) for rows in draws])
        for network, (logits, labels) in by_network.items()
    }
    named = {network: values[network] for network in NETWORKS if network in values}
    if {"guided", "control"} <= set(named):
        named["guided - control"] = named["guided"] - named["control"]
    return [
        {
            "metric": "map",
            "network": network,
            "value": float(of[0]),
            "low": float(np.quantile(of[1:], 0.025)),
            "high": float(np.quantile(of[1:], 0.975)),
            "n_rows": number,
            "n_images": number,
        }
        for network, of in named.items()
    ]


# Writing ------------------------------------------------------------------------------------------------------------


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Any table of this module as CSV: full precision, the same bytes for the same table."""
    table.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


class _Cell(NamedTuple):
    text: str
    rank: str = ""
    rest: str = ""


def _layout(table: pd.DataFrame) -> tuple[list[str], dict[str, list[list[_Cell]]]]:
    """Headings, and per section the rows of cells: label, then value with interval, published and difference each."""
    metrics = table_metrics(table.attrs["number"])
    headings = ["Metric"]
    for metric in metrics:
        headings += [metric.label, "published", "difference"]
    sections: dict[str, list[list[_Cell]]] = {"main": [], "extra": []}
    for (section, label, *_), rows in table.groupby(["section", "row", "network", "method"], sort=False):
        by_metric = {row.metric: row for row in rows.itertuples()}
        line = [_Cell(label)]
        for metric in metrics:
            cell = by_metric[metric.key]
            ran = cell.value != NOT_RUN
            line.append(
                _Cell(f"{cell.value:.2f}", cell.rank, f" [{cell.low:.2f}, {cell.high:.2f}]") if ran else _Cell(NOT_RUN)
            )
            line.append(_Cell(cell.published if isinstance(cell.published, str) else f"{cell.published:.2f}"))
            same = isinstance(cell.difference, str)
            line.append(_Cell(cell.difference if same else f"{cell.difference:+.2f} ({cell.verdict})"))
        sections[section].append(line)
    return headings, sections


def _caption(attrs: dict) -> str:
    subject = "Localisation" if attrs["number"] in (1, 2) else "Faithfulness"
    paper = "ResNet-50" if attrs["number"] in (1, 3) else "VGG-16"
    if attrs["deviations"]:
        verdict = f"Not comparable with the published figures: {'; '.join(attrs['deviations'])}."
    else:
        verdict = "Run with the published settings."
    return f"{subject} on {attrs['arch']} ({paper} in the paper), in percent. {verdict}"


def _footnotes(table: pd.DataFrame, notes: Sequence[str]) -> list[str]:
    attrs = table.attrs
    mean = {"pairs": "mean over the pairs", "classes": "mean over the classes' means"}[attrs["average"]]
    sources = [source for source in table["source"].unique() if source != NOT_PUBLISHED]
    return [
        f"{attrs['n_images']} test images, {attrs['n_pairs']} (image, class) pairs; {mean}.",
        f"[low, high] is the 95 % percentile bootstrap interval, images resampled; {SEEDS_LINE}",
        "Best in bold, second best underlined, by our values above the line; difference is ours minus published.",
        VERDICT_RULE,
        *notes,
        f"Published figures: {'; '.join(sources)}.",
    ]


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write_markdown(table: pd.DataFrame, path: str | Path, *, notes: Sequence[str] = ()) -> None:
    """A :func:`build_table` table laid out as in the paper; ``notes`` (the metric variants in force) go below it."""
    headings, sections = _layout(table)

    def line(cells: Sequence[_Cell]) -> str:
        marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
        return "| " + " | ".join(marks[cell.rank].format(_markdown(cell.text)) + cell.rest for cell in cells) + " |"

    rule = ["Rows that the paper does not have"] + ["---"] * (len(headings) - 1)
    lines = [
        f"**Table {table.attrs['number']}.** {_caption(table.attrs)}",
        "",
        line([_Cell(heading) for heading in headings]),
        "|---|" + "---:|" * (len(headings) - 1),
        *map(line, sections["main"]),
        line([_Cell(f"*{rule[0]}*"), *map(_Cell, rule[1:])]),
        *map(line, sections["extra"]),
        "",
        *(f"- {_markdown(note)}" for note in _footnotes(table, notes)),
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "%&_#${}"},
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",  # after \\ a bracket would open an optional argument
        "]": "{]}",
        "−": "$-$",
        "–": "--",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "α": r"$\alpha$",
        "β": r"$\beta$",
        "γ": r"$\gamma$",
        "μ": r"$\mu$",
        "σ": r"$\sigma$",
    }
)


def write_latex(table: pd.DataFrame, path: str | Path, *, notes: Sequence[str] = ()) -> None:
    r"""As :func:`write_markdown`, as a ``table`` environment that compiles wherever ``\usepackage{booktabs}`` is."""
    headings, sections = _layout(table)

    def line(cells: Sequence[_Cell]) -> str:
        marks = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
        texts = (marks[cell.rank] % cell.text.translate(_LATEX) + cell.rest.translate(_LATEX) for cell in cells)
        return " & ".join(texts) + r" \\"

    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering\scriptsize\setlength{\tabcolsep}{2pt}",
        rf"\caption{{{_caption(table.attrs).translate(_LATEX)}}}",
        rf"\label{{tab:ibsgl-{table.attrs['number']}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        line([_Cell(heading) for heading in headings]),
        r"\midrule",
        *map(line, sections["main"]),
        r"\midrule",
        *map(line, sections["extra"]),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\raggedright",
        *(rf"{note.translate(_LATEX)}\par" for note in _footnotes(table, notes)),
        r"\end{table}",
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_guidance_markdown(table: pd.DataFrame, path: str | Path, *, model: str, notes: Sequence[str] = ()) -> None:
    """A :func:`guidance_table` of ``model`` as Markdown: losses with four decimals, accuracy in percent with two."""
    labels = {"l_ce": "L_CE(L^c, L^ib)", "l_ss": "L_SS(L^c, L^p)", "accuracy": "accuracy (%)", "map": "mAP (%)"}
    lines = [
        f"**What guidance does to {_markdown(model)}.** Losses on held-out training images, accuracy or mAP on test images.",
        "",
        "| metric | network | mean [95 % interval] | images |",
        "|---|---|---:|---:|",
    ]
    for row in table.itertuples():
        digits = 2 if row.metric in ("accuracy", "map") else 4
        value = f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
        lines.append(f"| {labels[row.metric]} | {row.network} | {value} | {row.n_images} |")
    lines += ["", *(f"- {_markdown(note)}" for note in notes)]
    lines.append(f"- Percentile bootstrap, images resampled; {SEEDS_LINE}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
