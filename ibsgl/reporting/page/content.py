"""What the report says: plain values for the template, from the tables, the records and the scores of a run."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from ibsgl.metrics import METRICS
from ibsgl.provenance import digest_file
from ibsgl.reporting.claim_texts import VERDICTS, answer, claim_rows
from ibsgl.reporting.formats import comparison_rows
from ibsgl.reporting.page.thumbnails import LISTING
from ibsgl.reporting.tables import NOT_COMPARABLE, NOT_PUBLISHED, NOT_RUN, deviations_of_run, table_metrics
from ibsgl.reporting.verdicts import Verdict

if TYPE_CHECKING:
    from ibsgl.config.schema import Config
    from ibsgl.reporting.measurements import Measurements

# A verdict is a word and a sign, never a colour alone.
SIGNS = {
    Verdict.SUPPORTED: "✓",
    Verdict.CONTRADICTED: "✗",
    Verdict.NO_RELEVANT_EFFECT: "≈",
    Verdict.NOT_RESOLVED: "?",
    Verdict.NOT_TESTED: "–",
}
_TEXTS = {"arch": "", "reason": "", "by_replicate": "", "shown": "", "comparisons": "", "why": ""}


def page_context(
    config: Config,
    measured: Mapping[str, Measurements],
    maps: Mapping[str, Mapping[str, Any]],
    *,
    claims: Path,
    tables: Sequence[Path],
    figures: Sequence[Path],
    records: Sequence[Mapping[str, Any]],
    published: Path,
) -> dict[str, Any]:
    """The values of ``templates/index.html.j2``.

    Args:
        config: of the run.
        measured: by network, the measurements of at least the first replicate.
        maps: by network, those of :func:`browser`.
        claims: ``claims.csv``.
        tables: ``table<number>.csv``, ``comparisons_<model>.csv`` and ``metrics_<model>.csv``, in any order. A ``.md`` is
            beside each table.
        figures: PNG files.
        records: those of :func:`ibsgl.provenance.read_records`.
        published: folder of the published values.
    """
    scores = next(iter(measured.values())).scores
    numbered = [paper_table(file) for file in tables if file.stem.startswith("table")]
    return {
        "name": config.name,
        "answer": claims_content(read_claims_table(claims)),
        "verdicts": {str(verdict): text for verdict, text in VERDICTS.items()},
        "data": config.data_name,
        "test_images": scores["image_id"].nunique(),
        "test_pairs": len(scores.drop_duplicates(["image_id", "target"])),
        "networks": {model: of_model.arch for model, of_model in config.models.items()},
        "replicates": config.replicates,
        "seed": config.seed,
        "facts": run_facts(records),
        "deviations": {model: deviations_of_run(of, config, model, published) for model, of in measured.items()},
        "tables": sorted(numbered, key=lambda table: table["number"]),
        "comparisons": [comparisons(file) for file in tables if file.stem.startswith("comparisons_")],
        "further": [further_metrics(file) for file in tables if file.stem.startswith("metrics_")],
        "figures": [figure(file) for file in figures],
        "shown_images": max(len({pair["image_id"] for pair in of_model["pairs"]}) for of_model in maps.values()),
        "shown_pairs": max(len(of_model["pairs"]) for of_model in maps.values()),
    }


def read_claims_table(csv: Path) -> pd.DataFrame:
    """A table of :func:`ibsgl.reporting.claim_texts.write_claims`."""
    return pd.read_csv(csv, dtype=dict.fromkeys(_TEXTS, str)).fillna(_TEXTS)


def claims_content(table: pd.DataFrame) -> dict[str, Any]:
    """The answer in sentences (``sentences``), and the claims with what was found on each network (``claims``)."""
    found = []
    for _, rows in table.groupby("claim", sort=False):
        first = rows.iloc[0]
        found.append(
            {
                "title": first["title"],
                "quote": first["quote"],
                "place": first["place"],
                "published": first["published_margin"],
                "rows": [row | {"sign": SIGNS[Verdict(row["verdict"])]} for row in claim_rows(rows)],
            }
        )
    return {"sentences": answer(table), "claims": found}


def paper_table(csv: Path) -> dict[str, Any]:
    """One of Tables 1–4 for the template, from ``csv`` and the ``.md`` beside it.

    Returns:
        ``number``, ``caption``, ``notes`` (sentences), ``metrics`` (headings) and ``rows``: ``label``, ``in_paper``,
        ``replicates`` and ``cells``, one for each metric: ``value`` (``None`` where it was not run), ``text``, ``interval``,
        ``each`` (every training's value), ``rank``, ``published``, ``verdict``, and ``compared``: whether the verdict says
        how ours compares with the published value.
    """
    number = int(csv.stem.removeprefix("table"))
    table = pd.read_csv(csv, keep_default_na=False)
    lines = csv.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    metrics = table_metrics(number)
    rows = []
    for (section, label, _, _), group in table.groupby(["section", "row", "variant", "method"], sort=False):
        cells = group.set_index("metric")
        rows.append(
            {
                "label": label,
                "in_paper": section == "main",
                "replicates": int(group["replicates"].max()),
                "cells": [_cell(cells.loc[metric.key]) for metric in metrics],
            }
        )
    return {
        "number": number,
        "caption": _unescaped(lines[0].partition("** ")[2]),
        "notes": [_unescaped(line.removeprefix("- ")) for line in lines if line.startswith("- ")],
        "metrics": [metric.label for metric in metrics],
        "rows": rows,
    }


def _unescaped(markdown: str) -> str:
    return html.unescape(markdown.replace("\\|", "|"))


def _number(value: Any, form: str) -> str:
    """A number of a table as text. Where a table has a word instead of a number, the word."""
    try:
        return format(float(value), form)
    except ValueError:
        return str(value)


def _cell(cell: pd.Series) -> dict[str, Any]:
    run = cell["value"] != NOT_RUN
    return {
        "value": float(cell["value"]) if run else None,
        "text": _number(cell["value"], ".2f"),
        "interval": f"[{_number(cell['low'], '.2f')}, {_number(cell['high'], '.2f')}]" if run else "",
        "each": ", ".join(_number(value, ".2f") for value in str(cell["by_replicate"]).split("; ")) if run else "",
        "rank": cell["rank"],
        "published": _number(cell["published"], ".2f"),
        "verdict": cell["verdict"],
        "compared": cell["verdict"] not in (NOT_RUN, NOT_PUBLISHED, NOT_COMPARABLE),
    }


def comparisons(csv: Path) -> dict[str, Any]:
    """``comparisons_<model>.csv`` for the template: ``model``, and ``rows`` with texts."""
    table = pd.read_csv(csv, dtype={"by_replicate": str})
    return {"model": csv.stem.removeprefix("comparisons_"), "rows": comparison_rows(table)}


def further_metrics(csv: Path) -> dict[str, Any]:
    """``metrics_<model>.csv`` for the template: ``model``, and ``rows``, in which empty texts stand for what there is not."""
    table = pd.read_csv(csv, keep_default_na=False)
    rows = []
    for row in table.to_dict("records"):
        known = row["value"] != ""
        value, low, high = (float(row[key]) if known else 0.0 for key in ("value", "low", "high"))
        rows.append(
            {
                **{
                    key: row[key]
                    for key in ("label", "variant", "metric_label", "pairs", "mark", "published", "reason")
                },
                "value": row["value"],
                "text": f"{value:.4f}" if known else "–",
                "interval": f"[{low:.4f}, {high:.4f}]" if known else "",
                "rank": int(float(row["rank"])) if row["rank"] != "" else "",
            }
        )
    return {"model": csv.stem.removeprefix("metrics_"), "rows": rows}


def run_facts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What made the run.

    Returns:
        ``commits``, ``devices``, ``platforms``, ``versions`` by package, ``data_digests``, ``hours`` of work, ``first`` and
        ``last`` day, and the number of ``records``.
    """

    def distinct(values: Iterable[Any]) -> list[str]:
        return sorted({str(value) for value in values if value})

    tags = [record["tags"] for record in records]
    days = [datetime.fromtimestamp(record["started"], UTC).date().isoformat() for record in records]
    # An evaluation is one job, and has a record for each of its methods.
    jobs = {(record["started"], record["seconds"]) for record in records}
    versions: dict[str, str] = {}
    for of_record in tags:
        versions |= {name: version for name, version in of_record.get("versions", {}).items() if version}
    return {
        "commits": distinct(
            f"{of_record.get('commit')}{' with changes' if of_record.get('dirty') else ''}" for of_record in tags
        ),
        "devices": distinct(of_record.get("device") for of_record in tags),
        "platforms": distinct(of_record.get("platform") for of_record in tags),
        "versions": versions,
        "data_digests": distinct(of_record.get("data_digest") for of_record in tags),
        "hours": sum(seconds for _, seconds in jobs) / 3600,
        "first": min(days, default=""),
        "last": max(days, default=""),
        "records": len(records),
    }


def histories(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The training curves: one row per training and epoch, with ``model``, ``replicate``, ``variant`` and what was measured."""
    rows = []
    for record in records:
        if record["kind"] == "training":
            model, replicate, variant = record["result_id"].split("/")
            names = {"model": model, "replicate": int(replicate), "variant": variant}
            rows += [names | dict(epoch) for epoch in record["history"]]
    return pd.DataFrame(rows)


_FIGURES = {
    "figure2": "Figure 2: the maps of the target and of the likeliest other class, before and after guidance.",
    "figure3": "Figure 3: the target's map before and after guidance.",
    "figure4": "Figure 4: the target's probability while the map's most important region is deleted.",
    "training": "Training: how well the networks classify the held-out images, with and without guidance.",
    "sensitivity": "Sensitivity: how each alternative changes the effects behind the claims.",
}


def _agreement(stem: str) -> str:
    """The text of the figure of a network's further metrics; of a figure that is not known, its name."""
    model = stem.removeprefix("metric_agreement_")
    return (
        stem
        if model == stem
        else f"Agreement of the metrics on {model}: Kendall's τ between their rankings of the methods."
    )


# Pixels of a figure per pixel of the page.
_DENSITY = 2


def figure(png: Path) -> dict[str, Any]:
    """A figure for the template: ``file`` (its name without ending), ``text``, ``width`` and ``height`` on the page."""
    with Image.open(png) as image:
        width, height = image.size
    return {
        "file": png.stem,
        "text": _FIGURES.get(png.stem) or _agreement(png.stem),
        "width": width // _DENSITY,
        "height": height // _DENSITY,
    }


def browser(folder: Path, scores: pd.DataFrame) -> dict[str, Any]:
    """The data of the map browser for one network.

    Args:
        folder: of :func:`ibsgl.reporting.page.thumbnails.write_thumbnails`.
        scores: :attr:`ibsgl.reporting.measurements.Measurements.scores`. Those of the first replicate count, of maps that are
            scored by the variant that they are from.

    Raises:
        ValueError: a picture has changed since it was written.

    Returns:
        the list of the pictures, with ``metrics`` ([key, label, whether higher is better]) and in each pair ``scores``: for
        each map the metrics and the probabilities ``p_full`` and ``p_kept``, in this order, all in [0,1].
    """
    listing: dict[str, Any] = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    own = scores[(scores["scored_on"] == scores["variant"]) & (scores["replicate"] == scores["replicate"].min())]
    keys = [key for key in METRICS if key in own]
    columns = [*keys, "p_full", "p_kept"]
    by_map = own.set_index(["image_id", "target", "variant", "method"])[columns].round(4)
    values = dict(zip(by_map.index, by_map.to_numpy().tolist(), strict=True))
    for pair in listing["pairs"]:
        if digest_file(folder / pair["file"]) != pair.pop("sha256"):
            raise ValueError(
                f"{folder / pair['file']} has changed since it was written; delete the folder {folder} and run again"
            )
        pair["scores"] = [
            values[pair["image_id"], pair["target"], variant, method] for variant, method, _ in listing["maps"]
        ]
    labels = {key: METRICS[key].label.removesuffix("(%)").strip() for key in keys}
    listing["metrics"] = [[key, labels[key], METRICS[key].higher_is_better] for key in keys]
    return listing
