"""Tables as files: CSV, Markdown and LaTeX. Equal tables give equal bytes, and every file is written whole."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ibsgl.metrics import METRICS
from ibsgl.reporting.comparisons import METRIC_LABELS, interval_note
from ibsgl.reporting.tables import METRIC_DIGITS, NOT_PUBLISHED, NOT_RUN, UNKNOWN, VERDICT_RULE, table_metrics
from ibsgl.seals import sealed

MARKS_LINES = (
    "Best in bold, second best underlined, among the rows of one variant of the network: by our values on the trainings that "
    "all of these rows have. Sanity methods have no marks.",
    "Rows without the name of a variant are of the pretrained network. 'Ours' is of the guided network, and is marked among "
    "its rows, although it stands among the baselines as in the paper.",
    "Difference is ours minus published.",
)
SHARES_LINE = (
    "Accuracy and Average Increase are shares of images: on one training, or where all images agree, the interval is that of "
    "Wilson."
)
# Metrics of held-out training images, and of test and further images. All others are of test images.
_HELD_OUT = ("l_ce", "l_ss", "overlap")
_FURTHER = ("accuracy", "map")
# Units with two decimals; others have four.
_PERCENT = ("%", "percent", "points", "percentage points")


def write_table(table: pd.DataFrame, csv: str | Path, notes: Sequence[str] = ()) -> None:
    """Write a table of :func:`ibsgl.reporting.tables.build_table` as CSV, and as ``.md`` and ``.tex`` beside it.

    Args:
        table: with its ``attrs``.
        csv: the CSV file.
        notes: sentences that go below the table (:func:`ibsgl.reporting.notes.method_notes`).
    """
    path = Path(csv)
    # All texts are made before the first file is written, so that an error leaves the old files as they were.
    texts = {path: _csv(table), path.with_suffix(".md"): _paper_markdown(table, notes)}
    texts[path.with_suffix(".tex")] = _latex(table, notes)
    for file, text in texts.items():
        _write_text(file, text)


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write any table as CSV with full precision."""
    _write_text(path, _csv(table))


def comparison_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of :func:`ibsgl.reporting.comparisons.comparison_table` as people read them.

    ``metric`` is a label; ``text``, ``interval`` and ``each`` (every training's value) are rounded, ``value`` is not.
    """
    rows = []
    for row in table.itertuples():
        digits = 2 if row.unit in _PERCENT else 4
        known = row.metric in METRIC_LABELS
        rows.append(
            {
                "metric": METRIC_LABELS[row.metric] if known else METRICS[row.metric].label.removesuffix("(%)"),
                "comparison": row.comparison,
                "value": float(row.value),
                "text": f"{row.value:.{digits}f}",
                "interval": _interval(row.low, row.high, digits),
                "unit": row.unit,
                "replicates": row.replicates,
                "images": row.images,
                "each": "; ".join(f"{float(value):.{digits}f}" for value in str(row.by_replicate).split("; ")),
            }
        )
    return rows


def write_comparisons_markdown(table: pd.DataFrame, path: str | Path, *, model: str, notes: Sequence[str] = ()) -> None:
    """Write the paired comparisons of one network's variants as Markdown.

    Percentages and percentage points have two decimals, other units four.

    Args:
        table: columns ``metric`` (key), ``comparison``, ``value``, ``low``, ``high`` (95 % interval; NaN or infinite if it is
            not known), ``unit``, ``replicates``, ``images`` (numbers), ``by_replicate`` (values joined by "; ").
        path: the file.
        model: the network's name.
        notes: sentences that go below the table.
    """
    lines = [
        f"**What guidance does to {_markdown(model)}.** Paired by image and training.",
        "",
        "| metric | comparison | mean [95 % interval] | unit | trainings | images | each training |",
        "|---|---|---:|---|---:|---:|---|",
    ]
    for row in comparison_rows(table):
        cells = [row[key] for key in ("metric", "comparison", "text", "unit", "replicates", "images", "each")]
        cells[2] = f"{row['text']} {row['interval']}"
        lines.append(f"| {' | '.join(_markdown(str(cell)) for cell in cells)} |")
    # A label appears once, in the order of the table.
    names = {key: METRIC_LABELS.get(key, "") for key in table["metric"].unique()}
    held_out = [names[key] for key in names if key in _HELD_OUT]
    further = [names[key] for key in names if key in _FURTHER]
    images = [f"{_list(held_out)}: held-out training images."] if held_out else []
    images += [f"{_list(further)}: test images, and further images where the data are generated."] if further else []
    if len(names) > len(held_out) + len(further):
        images.append(f"{'All others' if images else 'All metrics'}: test images.")
    lines += ["", f"- {' '.join(images)}"]
    lines.append(f"- {interval_note(table['replicates'])}")
    if not names.keys().isdisjoint(("accuracy", "average_increase")):
        lines.append(f"- {SHARES_LINE}")
    lines += [f"- {_markdown(note)}" for note in notes]
    _write_text(path, "\n".join(lines) + "\n")


def write_metrics_markdown(
    table: pd.DataFrame, path: str | Path, *, model: str, deviations: Sequence[str], notes: Sequence[str] = ()
) -> None:
    """Write the further metrics of one network as Markdown: a section for each variant, a line for each method.

    Args:
        table: that of :func:`ibsgl.reporting.metric_table.metric_table`.
        path: the file.
        model: the network's name.
        deviations: how the run differs from the published settings (:func:`ibsgl.reporting.tables.deviations_of_run`).
        notes: sentences that go below the table (:func:`ibsgl.reporting.metric_table.metric_notes`).
    """
    differs = (
        f"Not the published settings: {'; '.join(deviations)}." if deviations else "Run with the published settings."
    )
    lines = [f"**Further metrics on {_markdown(model)}.** {_markdown(differs)}"]
    for variant, of_variant in table.groupby("variant", sort=False):
        names = of_variant.drop_duplicates("metric")["metric_label"]
        lines += ["", f"## {_markdown(str(variant))}", "", f"| method | {' | '.join(map(_markdown, names))} |"]
        lines.append("|---|" + "---:|" * len(names))
        for label, cells in of_variant.groupby("label", sort=False):
            texts = [_markdown(_metric_cell(cell._asdict())) for cell in cells.itertuples()]
            lines.append(f"| {_markdown(str(label))} | {' | '.join(texts)} |")
    pairs = int((table["pairs"] + table["left_out"]).max())
    lines += [
        "",
        f"- {interval_note(table['replicates'])} (n) is the rank among the methods of one variant, by the "
        "rounded values over the pairs that all of them have; 1 is best.",
    ]
    lines.append(
        "- Sanity methods have no rank, and are not among the methods whose rankings are compared in the plot. They show how "
        "low and how high a value can be."
    )
    lines.append(
        f"- {pairs} (image, class) pairs. Where fewer have a value, their number is given, and the others are left out of the "
        "mean. –: no pair has a value."
    )
    lines += [f"- {_markdown(note)}" for note in notes]
    _write_text(path, "\n".join(lines) + "\n")


def _metric_cell(cell: Mapping[str, Any]) -> str:
    """One value of the further metrics: with its interval, rank, number of pairs, mark and published value."""
    if math.isnan(cell["value"]):
        return "–"
    digits = METRIC_DIGITS
    parts = [f"{cell['value']:.{digits}f} {_interval(cell['low'], cell['high'], digits)}"]
    if not math.isnan(cell["rank"]):
        parts.append(f"({cell['rank']:.0f})")
    if cell["left_out"]:
        parts.append(f"{cell['pairs']} pairs")
    if cell["mark"]:
        parts.append(f"*{cell['mark']}*")
    if cell["published"] != "":
        published = cell["published"]
        parts.append(f"published: {published if isinstance(published, str) else f'{published:.{digits}f}'}")
    return " ".join(parts)


def _list(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _interval(low: float | str, high: float | str, digits: int) -> str:
    if isinstance(low, str) or isinstance(high, str) or not math.isfinite(low) or not math.isfinite(high):
        return f"[{UNKNOWN}]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _write_text(path: str | Path, text: str) -> None:
    with sealed(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


# What a spreadsheet would run as a formula. A number, or several with "; " between them, is none.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = r"[+-]?(\d[\d.]*([eE][+-]?\d+)?|inf|nan)"
_NUMBERS = re.compile(rf"{_NUMBER}(; {_NUMBER})*")


def _no_formula(value: object) -> object:
    """A cell's text with an apostrophe before it where a spreadsheet would take it for a formula."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value


def _csv(table: pd.DataFrame) -> str:
    texts = table.select_dtypes(exclude="number").columns
    safe = table.assign(**{str(column): table[column].map(_no_formula) for column in texts})
    return safe.to_csv(index=False, lineterminator="\n")


class _Cell(NamedTuple):
    text: str
    rank: str = ""
    # Text that follows and is neither bold nor underlined.
    rest: str = ""


def _layout(table: pd.DataFrame) -> tuple[list[str], dict[str, list[list[_Cell]]]]:
    """Headings, and the rows of each section.

    A row is the label and the number of trainings, and then, for each metric, the value with its interval, the published value
    and the difference.
    """
    metrics = table_metrics(table.attrs["number"])
    headings = ["Metric", "trainings"]
    for metric in metrics:
        headings += [metric.label, "published", "difference"]
    sections: dict[str, list[list[_Cell]]] = {"main": [], "extra": []}
    for (section, label, *_), rows in table.groupby(["section", "row", "variant", "method"], sort=False):
        by_metric = {row.metric: row for row in rows.itertuples()}
        line = [_Cell(label), _Cell(str(max(rows["replicates"])))]
        for metric in metrics:
            result = by_metric[metric.key]
            if result.value == NOT_RUN:
                line.append(_Cell(NOT_RUN))
            else:
                line.append(_Cell(f"{result.value:.2f}", result.rank, f" {_interval(result.low, result.high, 2)}"))
            for value, text in (
                (result.published, "{:.2f}"),
                (result.difference, f"{{:+.2f}} ({result.verdict})"),
            ):
                # Without a number there is a text that gives the reason.
                line.append(_Cell(value if isinstance(value, str) else text.format(value)))
        sections[section].append(line)
    return headings, sections


def _caption(attrs: Mapping[str, Any]) -> str:
    subject = "Localisation" if attrs["number"] in (1, 2) else "Faithfulness"
    paper = "ResNet-50" if attrs["number"] in (1, 3) else "VGG-16"
    if attrs["deviations"]:
        verdict = f"Not comparable with the published values: {'; '.join(attrs['deviations'])}."
    else:
        verdict = "Run with the published settings."
    return f"{subject} on {attrs['arch']} ({paper} in the paper), in percent. {verdict}"


def _footnotes(table: pd.DataFrame, notes: Sequence[str]) -> list[str]:
    attrs = table.attrs
    mean = {"pairs": "mean over the pairs", "classes": "mean over the classes' means"}[attrs["average"]]
    sources = [source for source in table["source"].unique() if source != NOT_PUBLISHED]
    chosen = attrs["not_stated"]
    return [
        f"{attrs['n_images']} test images, {attrs['n_pairs']} (image, class) pairs; {mean}, and over the trainings. The CSV "
        "has the value of each training.",
        interval_note(table["replicates"]),
        *MARKS_LINES,
        SHARES_LINE,
        VERDICT_RULE,
        *notes,
        *([f"Stated nowhere, chosen by this run: {'; '.join(chosen)}."] if chosen else []),
        *([f"In every run: {' '.join(attrs['differences'])}"] if attrs["differences"] else []),
        f"Published values: {'; '.join(sources)}.",
    ]


def _markdown(text: str) -> str:
    """Text for Markdown: no tag, no cell and no line of its own."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _paper_markdown(table: pd.DataFrame, notes: Sequence[str]) -> str:
    headings, sections = _layout(table)

    def line(cells: Sequence[_Cell]) -> str:
        marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
        return "| " + " | ".join(marks[cell.rank].format(_markdown(cell.text)) + cell.rest for cell in cells) + " |"

    rule = ["*Rows that the paper does not have*"] + ["---"] * (len(headings) - 1)
    lines = [
        f"**Table {table.attrs['number']}.** {_caption(table.attrs)}",
        "",
        line([_Cell(heading) for heading in headings]),
        "|---|" + "---:|" * (len(headings) - 1),
        *map(line, sections["main"]),
        line([_Cell(text) for text in rule]),
        *map(line, sections["extra"]),
        "",
        *(f"- {_markdown(note)}" for note in _footnotes(table, notes)),
    ]
    return "\n".join(lines) + "\n"


_LATEX = str.maketrans(
    {
        "\n": " ",
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


def _latex(table: pd.DataFrame, notes: Sequence[str]) -> str:
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
    return "\n".join(lines) + "\n"
