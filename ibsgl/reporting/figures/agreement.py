"""How far the metrics agree on the methods: Kendall's τ between their rankings, as heat maps."""

from __future__ import annotations

import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ibsgl.reporting.figures.style import LETTERS_PER_INCH, LINE_HEIGHT, NOTE_STYLE, STYLE

# Inches of one cell, of a letter of the metrics' names beside and below the cells, and of the rest: title, scale and margins.
_CELL, _LETTER, _REST = 0.36, 0.076, 0.7
_DARK = 0.6


@matplotlib.rc_context(STYLE)
def agreement_figure(agreement: pd.DataFrame, *, model: str) -> Figure:
    """A heat map for each variant of :func:`ibsgl.reporting.metric_table.agreement_table`, with the values in its cells."""
    variants = list(agreement["variant"].unique())
    names = list(agreement["first"].unique())
    # Two metrics are compared on the methods that have values of both.
    methods = agreement.groupby("variant", sort=False)["methods"].agg(fewest="min", most="max")
    numbers = [
        f"{row.Index} has {row.most}" if row.fewest == row.most else f"{row.Index} has from {row.fewest} to {row.most}"
        for row in methods.itertuples()
    ]
    side, beside = _CELL * len(names), _LETTER * max(map(len, names))
    width = beside + len(variants) * side + 2 * _REST
    note = (
        f"Kendall's τ-b between the metrics' rankings of the methods on {model}: 1 is the same ranking, −1 the reverse, and "
        "each metric's better end is first. Sanity methods (centre, random, oracle) are left out. A dash: fewer than three "
        "methods have both values, or all have the same. With few methods τ is coarse: "
        f"{', '.join(numbers)}."
    )
    lines = textwrap.wrap(note, int(width * LETTERS_PER_INCH))
    figure = Figure(figsize=(width, beside + side + _REST / 2 + LINE_HEIGHT * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for axes, variant in zip(panels, variants, strict=True):
        of_variant = agreement[agreement["variant"] == variant]
        values = np.full((len(names), len(names)), np.nan)
        for row in of_variant.itertuples():
            i, j = names.index(row.first), names.index(row.second)
            values[i, j] = values[j, i] = row.tau
        image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
            colour = "white" if abs(value) > _DARK else "0.1"
            axes.text(j, i, text, ha="center", va="center", size=6, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(variant, size=8)
    figure.colorbar(image, ax=panels.tolist(), shrink=0.6, label="Kendall's τ")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", **NOTE_STYLE)
    return figure
