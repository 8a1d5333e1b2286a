"""Tables as files: CSV, Markdown and LaTeX. Equal tables give equal bytes, and every file is written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ibsgl.files import written
from ibsgl.reporting.tables import NOT_PUBLISHED, NOT_RUN, VERDICT_RULE, table_metrics

SEEDS_LINE = "seeds: 1; the intervals are over test images, not over training runs."
_GUIDANCE_LABELS = {
    "l_ce": "L_CE(L^c, L^ib)",
    "l_ss": "L_SS(L^c, L^p)",
    "accuracy": "accuracy (%)",
    "map": "mAP (%)",
}


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


def write_markdown(table: pd.DataFrame, path: str | Path, *, notes: Sequence[str] = ()) -> None:
    """Write a table of :func:`ibsgl.reporting.tables.build_table` as Markdown, laid out as in the paper, ``notes`` below."""
    _write_text(path, _paper_markdown(table, notes))


def write_latex(table: pd.DataFrame, path: str | Path, *, notes: Sequence[str] = ()) -> None:
    r"""As :func:`write_markdown`, as a ``table`` environment of LaTeX. The document needs ``\usepackage{booktabs}``."""
    _write_text(path, _latex(table, notes))


def write_guidance_markdown(table: pd.DataFrame, path: str | Path, *, model: str, notes: Sequence[str] = ()) -> None:
    """Write a table of :func:`ibsgl.reporting.effect.guidance_table` as Markdown.

    Losses have four decimals; accuracy and mAP have two, in percent.

    Args:
        table: of one model.
        path: the file.
        model: its name.
        notes: sentences that go below the table.
    """
    lines = [
        f"**What guidance does to {_markdown(model)}.** Losses on held-out training images, accuracy or mAP on test images.",
        "",
        "| metric | variant | mean [95 % interval] | images |",
        "|---|---|---:|---:|",
    ]
    for row in table.itertuples():
        digits = 2 if row.metric in ("accuracy", "map") else 4
        value = f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
        lines.append(f"| {_GUIDANCE_LABELS[row.metric]} | {row.variant} | {value} | {row.n_images} |")
    lines += ["", *(f"- {_markdown(note)}" for note in notes)]
    lines.append(f"- Percentile bootstrap, images resampled; {SEEDS_LINE}")
    _write_text(path, "\n".join(lines) + "\n")


def _write_text(path: str | Path, text: str) -> None:
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


class _Cell(NamedTuple):
    text: str
    rank: str = ""
    # Text that follows and is neither bold nor underlined.
    rest: str = ""


def _layout(table: pd.DataFrame) -> tuple[list[str], dict[str, list[list[_Cell]]]]:
    """Headings, and the rows of each section.

    A row is the label and then, for each metric, the value with its interval, the published value and the difference.
    """
    metrics = table_metrics(table.attrs["number"])
    headings = ["Metric"]
    for metric in metrics:
        headings += [metric.label, "published", "difference"]
    sections: dict[str, list[list[_Cell]]] = {"main": [], "extra": []}
    for (section, label, *_), rows in table.groupby(["section", "row", "variant", "method"], sort=False):
        by_metric = {row.metric: row for row in rows.itertuples()}
        line = [_Cell(label)]
        for metric in metrics:
            result = by_metric[metric.key]
            if result.value == NOT_RUN:
                line.append(_Cell(NOT_RUN))
            else:
                line.append(_Cell(f"{result.value:.2f}", result.rank, f" [{result.low:.2f}, {result.high:.2f}]"))
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
    return [
        f"{attrs['n_images']} test images, {attrs['n_pairs']} (image, class) pairs; {mean}.",
        f"[low, high] is the 95 % percentile bootstrap interval, images resampled; {SEEDS_LINE}",
        "Best in bold, second best underlined, by our values above the line; difference is ours minus published.",
        VERDICT_RULE,
        *notes,
        f"Published values: {'; '.join(sources)}.",
    ]


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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
