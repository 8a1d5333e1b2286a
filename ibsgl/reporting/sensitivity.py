"""How much the effects behind the paper's claims change with each alternative of the config.

An alternative is compared with the base on the same networks, replicates and images. The change of an effect is the difference
of two differences, paired by image and replicate.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ibsgl.reporting.claims import Claim, compared_with, shown_with
from ibsgl.reporting.comparisons import METRIC_LABELS, difference_unit, difference_values, interval_note
from ibsgl.reporting.figures.style import LETTERS_PER_INCH, LINE_HEIGHT, NOTE_STYLE, STYLE
from ibsgl.reporting.measurements import Measurements, Quantity
from ibsgl.reporting.statistics import crossed_estimate
from ibsgl.seals import sealed
from ibsgl.training.variants import GUIDED

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

COLUMNS = (
    *("claim", "title", "model", "metric", "comparison", "judged", "unit", "alternative", "override"),
    *("base", "effect", "change", "low", "high"),
)
# What one panel of the plot and one section of the page show.
_PANEL = ["title", "model", "metric", "comparison"]
NOT_CORRECTED = (
    "The intervals are not corrected for their number: of changes that are zero, one in twenty excludes zero."
)


def sensitivity_table(
    claims: Sequence[Claim],
    config: Config,
    base: Mapping[str, Measurements],
    alternatives: Mapping[str, Mapping[str, Measurements]],
) -> pd.DataFrame:
    """The change of every effect behind a claim, for each alternative and network.

    Args:
        claims: those of :func:`ibsgl.reporting.claims.read_claims`. A claim about all networks has no effect of its own.
        config: the config with the alternatives.
        base: the measurements of the config itself, by network.
        alternatives: by name of the alternative and network. A network that is missing was measured as in the base, so nothing
            that is measured changes.

    Returns:
        One row per claim, network, comparison and alternative: ``judged``, whether the claim rests on the comparison or only
        reports it; ``override``, what the alternative changes of the config (JSON); ``base`` and ``effect`` (the effect without
        and with the alternative, in ``unit``), ``change`` with its 95 % interval ``low`` and ``high``, ``replicates``,
        ``images``, and ``reason`` where there is no change to give. The intervals are not corrected for their number.
    """
    rows: list[dict[str, Any]] = []
    for claim in claims:
        if claim.same_claim_on_all is not None:
            continue
        for model, measured in base.items():
            judged = compared_with(claim, measured, multilabel=config.data.multilabel)
            shown = shown_with(claim, multilabel=config.data.multilabel)
            for title, other in (*judged, *shown):
                facts: dict[str, Any] = {"claim": claim.key, "title": claim.title, "model": model}
                facts |= {"metric": other.metric, "comparison": title, "judged": (title, other) in judged}
                facts |= {"unit": difference_unit(other.metric)}
                for name, override in config.alternatives.items():
                    changed = config.alternative(name)
                    after = alternatives.get(name, {}).get(model, measured)
                    row = _row(measured, after, other, config, changed)
                    rows.append({**facts, "alternative": name, "override": json.dumps(override), **row})
    return pd.DataFrame(rows, columns=[*COLUMNS, "replicates", "images", "reason"])


def _row(before: Measurements, after: Measurements, other: Quantity, config: Config, changed: Config) -> dict[str, Any]:
    """The effect without and with the alternative, and its change."""
    if other.metric in ("accuracy", "map") and config.data.multilabel != changed.data.multilabel:
        return _nothing("one is an accuracy, the other an mAP")
    if other.metric == "l_ce" and config.guidance.cross_entropy != changed.guidance.cross_entropy:
        return _nothing("L_CE has another form")
    values = []
    for measured, settings in ((before, config), (after, changed)):
        # On multi-label data the accuracy is a mAP.
        key = other.metric
        if key in ("accuracy", "map"):
            key = "map" if settings.data.multilabel else "accuracy"
        quantities = Quantity(key, GUIDED), other._replace(metric=key)
        if reason := next((text for text in map(measured.missing, quantities) if text), ""):
            return _nothing(reason)
        try:
            values.append(difference_values(measured, *quantities, settings.tables.average))
        except ValueError as problem:
            return _nothing(str(problem))
    first, second = values
    shared = [number for number in first.columns if number in second.columns]
    if not shared or not first.index.equals(second.index):
        return _nothing("it is measured on other images or replicates")
    first, second = first[shared], second[shared]
    found = crossed_estimate((second - first).to_numpy(dtype=np.float64).T)
    return {
        "base": float(first.to_numpy().mean()),
        "effect": float(second.to_numpy().mean()),
        "change": found.mean,
        "low": found.low,
        "high": found.high,
        "replicates": found.replicates,
        "images": found.images,
        "reason": "",
    }


def _nothing(reason: str) -> dict[str, Any]:
    return dict.fromkeys(("base", "effect", "change", "low", "high"), np.nan) | {
        "replicates": 0,
        "images": 0,
        "reason": reason,
    }


def write_sensitivity(table: pd.DataFrame, csv: str | Path) -> None:
    """Write a table of :func:`sensitivity_table` as CSV, and as ``.md`` beside it: a section per claim and comparison."""
    path = Path(csv)
    lines = ["# How the effects change", ""]
    for (title, model, metric, comparison), rows in table.groupby(_PANEL, sort=False):
        measured = rows.dropna(subset="change")
        base = f"{measured['base'].iloc[0]:+.3f} {measured['unit'].iloc[0]}" if len(measured) else "not measured"
        lines += [
            f"## {title}: {METRIC_LABELS[str(metric)]}, {comparison}, {model}",
            "",
            f"Effect of the config itself: {base}.",
            "",
            "| alternative | effect | change [95 % interval] | trainings |",
            "|---|---:|---:|---:|",
        ]
        for row in rows.itertuples():
            if row.reason:
                lines.append(f"| {row.alternative} | – | {row.reason.replace('|', '/')} | – |")
                continue
            change = f"{row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            lines.append(f"| {row.alternative} | {row.effect:+.3f} | {change} | {row.replicates} |")
        lines.append("")
    lines.append(interval_note(table["replicates"]))
    lines.append(NOT_CORRECTED)
    for file, text in (
        (path, table.to_csv(index=False, lineterminator="\n")),
        (path.with_suffix(".md"), "\n".join(lines)),
    ):
        with sealed(file) as temporary:
            temporary.write_text(f"{text}\n" if not text.endswith("\n") else text, encoding="utf-8", newline="\n")


# Alternatives in a panel. Most of 36 change an effect by nothing.
_SHOWN = 12


@matplotlib.rc_context(STYLE)
def tornado(table: pd.DataFrame) -> Figure:
    """A panel per network and judged comparison: the changes of the effect with the alternatives, the largest first.

    Args:
        table: that of :func:`sensitivity_table`.

    Raises:
        ValueError: no change was measured.
    """
    measured = table[table["judged"].astype(bool)].dropna(subset="change")
    if measured.empty:
        raise ValueError("there is no change to draw: no alternative was measured")
    panels = [
        (name, rows.loc[rows["change"].abs().sort_values(kind="stable").index[-_SHOWN:]])
        for name, rows in measured.groupby(_PANEL, sort=False)
    ]
    columns = 2
    heights = [
        0.16 * max(len(rows) for _, rows in panels[at : at + columns]) + 0.9 for at in range(0, len(panels), columns)
    ]
    note = textwrap.wrap(
        "Change of the effect (alternative − base), with its 95 % interval over images and trainings. Zero: the alternative "
        f"changes nothing. The dotted line: with this change the effect is zero. Of more than {_SHOWN} alternatives, those "
        f"that change an effect most are shown; the table has all. {NOT_CORRECTED}",
        int(9 * LETTERS_PER_INCH),
    )
    figure = Figure(figsize=(9, sum(heights) + LINE_HEIGHT * len(note)), layout="constrained")
    grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((title, model, _, comparison), ordered) in zip(grid.flat, panels, strict=False):
        places = np.arange(len(ordered))
        low, high = ordered["change"] - ordered["low"], ordered["high"] - ordered["change"]
        axes.barh(places, ordered["change"], color="#0072B2", alpha=0.35, height=0.7)
        finite = np.isfinite(low) & np.isfinite(high)
        axes.errorbar(
            ordered["change"][finite],
            places[finite],
            xerr=[low[finite], high[finite]],
            fmt="o",
            markersize=2.5,
            color="#0072B2",
            linewidth=0.9,
        )
        axes.axvline(0, color="black", linewidth=0.7)
        axes.axvline(-ordered["base"].iloc[0], color="#D55E00", linewidth=0.9, linestyle=":")
        axes.set_yticks(places, ordered["alternative"], fontsize=6)
        axes.set_xlabel(f"change ({ordered['unit'].iloc[0]})", fontsize=7)
        axes.set_title("\n".join(textwrap.wrap(f"{title}: {comparison}, {model}", 60)), fontsize=7)
    figure.supxlabel("\n".join(note), x=0.02, ha="left", **NOTE_STYLE)
    return figure
