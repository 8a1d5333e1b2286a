"""What the verdicts on the paper's claims say, in words: the answer in a few sentences, and the files with every claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ibsgl.reporting.comparisons import METRIC_LABELS
from ibsgl.reporting.verdicts import MINIMUM_REPLICATES, Verdict
from ibsgl.seals import sealed

VERDICTS = {
    Verdict.SUPPORTED: "the corrected interval lies wholly beyond the smallest effect that matters (non-inferiority: wholly "
    "above minus that effect).",
    Verdict.CONTRADICTED: "it lies wholly beyond that effect in the other direction.",
    Verdict.NO_RELEVANT_EFFECT: "it lies wholly within plus and minus that effect.",
    Verdict.NOT_RESOLVED: f"none of these, or fewer than {MINIMUM_REPLICATES} replicates.",
    Verdict.NOT_TESTED: "the run lacks what the claim needs. The reason is given.",
}


def answer(table: pd.DataFrame) -> list[str]:
    """At most six plain sentences: what the run says about the paper's claims.

    Args:
        table: that of :func:`ibsgl.reporting.claims.evaluate_claims`.
    """
    sentences = []
    first = ("localisation", "bottleneck")
    for key in first:
        if len(rows := table[table["claim"] == key]):
            found = " and ".join(f"{row.verdict} with {row.model}{_effect_text(row)}" for row in rows.itertuples())
            sentences.append(f"{rows['title'].iloc[0]}: {found}.")
    others = table[~table["claim"].isin(first)]
    decisive = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_RELEVANT_EFFECT)
    for verdicts in (decisive, (Verdict.NOT_RESOLVED, Verdict.NOT_TESTED)):
        parts = []
        for verdict in verdicts:
            rows = others[others["verdict"] == str(verdict)]
            titles = [
                f"{_lower(str(title))} ({', '.join(group['model'])})"
                for title, group in rows.groupby("title", sort=False)
            ]
            if titles:
                parts.append(f"{verdict}: {'; '.join(titles)}")
        if parts:
            sentences.append(f"{'. '.join(part[0].upper() + part[1:] for part in parts)}.")
    if len(table):
        replicates = sorted({int(number) for number in table["replicates"].dropna()})
        span = (
            "no"
            if not replicates
            else f"{replicates[0]}"
            if len(replicates) == 1
            else f"{replicates[0]} to {replicates[-1]}"
        )
        networks = ", ".join(
            model if model == arch else f"{model} ({arch})"
            for model, arch in table.loc[table["arch"] != "", ["model", "arch"]].drop_duplicates().to_numpy()
        )
        sentences.append(
            f"This holds for {table['data'].iloc[0]} with the networks {networks}, over {span} training replicates."
        )
        if (table["on_paper_setting"] == str(Verdict.NOT_TESTED)).all():
            sentences.append(
                "The settings are not the paper's, so nothing here supports or contradicts its own results."
            )
    return sentences


def write_claims(table: pd.DataFrame, csv: str | Path) -> None:
    """Write a table of :func:`ibsgl.reporting.claims.evaluate_claims` as CSV with full precision, and as ``.md`` beside it."""
    path = Path(csv)
    texts = {path: table.to_csv(index=False, lineterminator="\n"), path.with_suffix(".md"): _markdown(table)}
    for file, text in texts.items():
        with sealed(file) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _number(value: float, unit: str, *, sign: bool = False) -> str:
    if math.isinf(value):
        return "+∞" if value > 0 else "-∞"
    text = f"{value:{'+' if sign else ''}.{2 if unit in ('points', '%') else 4}f}"
    # A rounded zero has no sign.
    return text.lstrip("+-") if not float(text) else text


def _amount(text: str, unit: str) -> str:
    """A number with its unit. A fraction has none."""
    if unit == "fraction":
        return text
    return f"{text} {'point' if unit == 'points' and text == '1' else unit}"


def interval_text(row: Mapping[str, Any], unit: str, prefix: Literal["", "corrected_"] = "", name: str = "") -> str:
    """The effect of a row with its 95 % interval, or with ``prefix`` the corrected one; ``name`` stands before the interval."""
    low, high = (_number(row[prefix + key], unit) for key in ("low", "high"))
    return f"{_amount(_number(row['effect'], unit, sign=True), unit)}{name} [{low}, {high}]"


def _effect_text(row: Any) -> str:
    if row.verdict == Verdict.NOT_TESTED:
        return f" ({row.reason})"
    # The interval that the verdict is taken from.
    return f" ({interval_text(row._asdict(), row.unit, 'corrected_', ', corrected interval')})"


def _lower(title: str) -> str:
    """``title`` within a sentence. Names that begin with a capital keep it."""
    return title if title.startswith(("Average", "EBPG", "L_")) else title[0].lower() + title[1:]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def claim_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table of :func:`ibsgl.reporting.claims.evaluate_claims` as people read them: texts, and lists of texts.

    ``effect`` (with the corrected interval), ``smallest``, ``corrected_p`` and ``replicates`` are empty where there is none.
    ``each`` has every training's value; ``comparisons`` and ``shown`` are lists. Other columns are as in the table.
    """
    rows = []
    for row in table.to_dict("records"):
        effect = ""
        if not math.isnan(row["effect"]):
            effect = interval_text(row, row["unit"], "corrected_")
        each = row["by_replicate"].split("; ") if row["by_replicate"] else []
        texts = {
            "effect": effect,
            "smallest": _amount(f"{row['smallest']:g}", row["unit"]),
            "corrected_p": "" if math.isnan(row["corrected_p"]) else f"{row['corrected_p']:.2g}",
            "replicates": "" if math.isnan(row["replicates"]) else str(int(row["replicates"])),
            "each": ", ".join(_number(float(value), row["unit"], sign=True) for value in each),
        }
        lists = {column: row[column].split("; ") if row[column] else [] for column in ("comparisons", "shown")}
        rows.append({str(key): value for key, value in row.items()} | texts | lists)
    return rows


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        "# The paper's claims in this run",
        "",
        *(f"- {_cell(sentence)}" for sentence in answer(table)),
        "",
        "| verdict | claim | network | effect [corrected interval] | smallest that matters | corrected p | replicates | "
        "on the paper's setting |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in claim_rows(table):
        cells = [row[key] for key in ("title", "model", "effect", "smallest", "corrected_p", "replicates")]
        lines.append(f"| **{row['verdict']}** | {' | '.join(map(_cell, cells))} | {row['on_paper_setting']} |")
    lines += ["", "Effects are guided minus the other. The verdicts:", ""]
    lines += [f"- *{verdict}*: {text}" for verdict, text in VERDICTS.items()]
    lines += [
        "",
        "Intervals are over images and training replicates. With one replicate they are of these trainings only. The corrected "
        "interval is that of the verdict: Holm's correction covers all claims and networks. \"On the paper's setting\" is "
        "*not tested* unless all published settings agree.",
    ]
    for _, rows in table.groupby("claim", sort=False):
        lines += ["", *_claim_section(rows.iloc[0], claim_rows(rows))]
    return "\n".join(lines) + "\n"


def _claim_section(claim: pd.Series, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section of one claim: the paper's words, the rule, and what was found on each network."""
    lines = [f"## {claim['title']}", "", f"> {claim['quote']} ({claim['place']})", ""]
    if claim["why"]:
        better = {"higher": "more", "lower": "less"}[claim["direction"]]
        smallest = _amount(f"{claim['smallest']:g}", claim["unit"])
        threshold = f"at most {smallest} worse"
        if claim["rule"] == "superiority":
            threshold = f"{smallest} {better}" if claim["smallest"] else f"any difference, {better}"
        lines += [f"- Rule: {claim['rule']}; {METRIC_LABELS[claim['metric']]}; {threshold}. {claim['why']}"]
    lines += [f"- Published: {claim['published_margin']}."]
    for row in rows:
        lines += [f"- **{row['verdict']}**: {row['sentence']}"]
        if row["each"]:
            lines += [f"    - {row['comparison']}, by replicate: {row['each']}"]
        for title, column in (("All comparisons", "comparisons"), ("Not judged", "shown")):
            texts = row[column]
            if len(texts) > (column == "comparisons"):
                lines += [f"    - {title}:", *(f"        - {text}" for text in texts)]
    return [line if line.startswith(">") else line.replace("|", "\\|") for line in lines]
