"""Figures 2 and 3: a sheet of images and of saliency maps over them, before and after guidance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ibsgl.reporting.figures.examples import Examples
from ibsgl.reporting.figures.style import COLORMAP, LETTERS_PER_INCH, LINE_HEIGHT, NOTE_STYLE, STYLE


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


class _Mosaic:
    """A sheet of square pictures: the images on the left, then pairs of maps for every model. All lengths are in inches."""

    _MARGIN, _NEAR, _APART, _TITLE, _FOOT, _HEADING = 0.08, 0.04, 0.14, 0.15, 0.17, 0.17

    def __init__(
        self, models: Sequence[str], pairs: Sequence[str], columns: tuple[str, str], rows: int, side: float, note: str
    ):
        """A sheet with headings and a note, and no pictures yet.

        Args:
            models: headings of the groups of columns.
            pairs: headings of each model's pairs of columns, or one empty heading for a single pair.
            columns: headings of the two columns of a pair.
            rows: number of rows.
            side: of a picture, in inches.
            note: the text under the pictures.
        """
        self.side = side
        lefts, cursor = [self._MARGIN], self._MARGIN + side
        for _ in models:
            cursor += self._APART
            for _ in pairs:
                lefts += [cursor + self._APART, cursor + self._APART + side + self._NEAR]
                cursor = lefts[-1] + side
        self.lefts, self.width = lefts, cursor + self._MARGIN
        lines = textwrap.wrap(note, int(self.width * LETTERS_PER_INCH))
        # The note's lines, then the colour bar with its numbers.
        under = 0.08 + LINE_HEIGHT * len(lines)
        bottom = under + 0.4
        pitch = self._TITLE + side + self._FOOT
        top = bottom + rows * pitch
        headings = 2 + any(pairs)
        self.height = top + headings * self._HEADING + 0.08
        self.bottoms = [top - number * pitch - self._TITLE - side for number in range(rows)]
        self.figure = Figure(figsize=(self.width, self.height))

        self._write(lefts[0] + side / 2, top + 0.05, "image")
        per_model = 2 * len(pairs)
        for number, model in enumerate(models):
            model_lefts = lefts[1 + number * per_model :][:per_model]
            self._headline(model_lefts, top + 0.05 + (headings - 1) * self._HEADING, model, weight="bold", size=8.5)
            for position, pair in enumerate(pairs):
                pair_lefts = model_lefts[2 * position : 2 * position + 2]
                if pair:
                    self._headline(pair_lefts, top + 0.05 + self._HEADING, pair)
                for left, column in zip(pair_lefts, columns, strict=True):
                    self._write(left + side / 2, top + 0.05, column)
        self._write(self._MARGIN, under, "\n".join(lines), ha="left", va="top", **NOTE_STYLE)
        self._color_bar(under + 0.26)

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "bottom"} | style
        self.figure.text(x / self.width, y / self.height, text, **style)

    def _headline(self, lefts: Sequence[float], y: float, text: str, **style: Any) -> None:
        """Write ``text`` over several columns, underlined from the first to the last."""
        right = lefts[-1] + self.side
        self._write((lefts[0] + right) / 2, y, text, **style)
        ends = [lefts[0] / self.width, right / self.width]
        self.figure.add_artist(Line2D(ends, [(y - 0.02) / self.height] * 2, color="0.6", linewidth=0.5))

    def _color_bar(self, y: float) -> None:
        length = min(2.0, 0.4 * self.width)
        # The last number is centred under the bar's end and needs room.
        left = self.width - self._MARGIN - 0.1 - length
        axes = self.figure.add_axes(
            (left / self.width, y / self.height, length / self.width, 0.08 / self.height), label="scale"
        )
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLORMAP)
        bar = self.figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
        bar.outline.set_linewidth(0.4)
        axes.tick_params(labelsize=6.5, length=2, pad=1.5)
        self._write(left - 0.06, y - 0.02, "saliency / maximum of its map", ha="right", size=6.5)

    def picture(self, row: int, column: int, title: str) -> Axes:
        """Empty axes with ``title`` above them. The title is printed as plain text: a ``$`` does not start mathematics."""
        axes = self.figure.add_axes(
            (
                self.lefts[column] / self.width,
                self.bottoms[row] / self.height,
                self.side / self.width,
                self.side / self.height,
            ),
            label=f"{row},{column}",
        )
        axes.set_axis_off()
        axes.set_title(title, pad=2.5, fontsize=7, parse_math=False)
        return axes

    def under(self, row: int, columns: Sequence[int], text: str, **style: Any) -> None:
        """Write ``text`` centred under one picture or several."""
        middle = (self.lefts[columns[0]] + self.lefts[columns[-1]] + self.side) / 2
        self._write(middle, self.bottoms[row] - 0.03, text, va="top", size=7, **style)


def _draw(axes: Axes, image: torch.Tensor, row: pd.Series, saliency: torch.Tensor | None = None) -> None:
    """Draw the image (3,S,S), or ``saliency`` (S,S) over the grey image, with the outlines of the class's boxes."""
    # The boxes are in the file's pixels. The picture is stretched to a square, as it is for the network.
    extent = (0, row["width"], row["height"], 0)
    pixels = image.permute(1, 2, 0).numpy()
    if saliency is None:
        axes.imshow(pixels, extent=extent, aspect="auto")
    else:
        grey = pixels @ np.array([0.299, 0.587, 0.114])
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
        highest = float(saliency.max())
        scaled = (saliency / highest if highest > 0 else saliency).numpy()
        axes.imshow(scaled, cmap=COLORMAP, vmin=0, vmax=1, alpha=0.6, extent=extent, aspect="auto")
        if highest == 0:
            axes.text(0.5, 0.5, "all zero", transform=axes.transAxes, ha="center", va="center", color="white")
    for x0, y0, x1, y1 in row["boxes"]:
        outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        outline.set_path_effects([withStroke(linewidth=1.7, foreground="black")])
        axes.add_patch(outline)


def _rows(examples: Mapping[str, Examples]) -> list[pd.Series]:
    """The pairs that all models show; ``ValueError`` if they show different ones."""
    first, *others = (list(zip(e.pairs["image_id"], e.pairs["target"], strict=True)) for e in examples.values())
    if any(other != first for other in others):
        raise ValueError(f"the models {', '.join(examples)} must have the same examples; choose the pairs once for all")
    pairs = next(iter(examples.values())).pairs
    return [row for _, row in pairs.iterrows()]


def _selection(count: int, seed: int) -> str:
    return (
        f"The {count} examples were fixed before any map was computed: class by class, in the order of a hash of the "
        f"image id (seed {seed}). Each map is divided by its own maximum; outlined: the boxes of the target class."
    )


def _images(mosaic: _Mosaic, examples: Examples, rows: list[pd.Series]) -> None:
    for number, row in enumerate(rows):
        _draw(mosaic.picture(number, 0, _short(row["class_name"], 18)), examples.images[number], row)
        mosaic.under(number, [0], _short(row["image_id"], 24), color="0.45", parse_math=False)


@matplotlib.rc_context(STYLE)
def figure2(examples: Mapping[str, Examples], *, seed: int) -> Figure:
    """Figure 2: the maps of the target class c and of the likeliest other class p, before and after guidance.

    Args:
        examples: by model, all of the same pairs. Each pair is a row.
        seed: the seed with which the pairs were chosen, for the note under the figure.

    Raises:
        ValueError: the models show different pairs.
    """
    rows = _rows(examples)
    fractions = ", ".join(dict.fromkeys(f"{each.r:g}" for each in examples.values()))
    note = (
        "c is the target class and p the network's likeliest class that is not in the ground truth, with their "
        f"probabilities. L_SS (Eq. 1, r = {fractions}) is 0 for maps that do not overlap. {_selection(len(rows), seed)}"
    )
    mosaic = _Mosaic(
        list(examples), ("before guidance", "after guidance"), ("$L^c$", "$L^p$"), len(rows), side=0.98, note=note
    )
    _images(mosaic, next(iter(examples.values())), rows)
    for position, each in enumerate(examples.values()):
        for half, explanation in enumerate((each.before, each.after)):
            columns = [1 + 4 * position + 2 * half, 2 + 4 * position + 2 * half]
            for number, row in enumerate(rows):
                classes = (
                    (row["class_name"], explanation.target_probability, explanation.l_c),
                    (each.class_names[explanation.other[number]], explanation.other_probability, explanation.l_p),
                )
                for column, (name, probability, maps) in zip(columns, classes, strict=True):
                    title = f"{_short(name, 12)} {probability[number]:.2f}"
                    _draw(mosaic.picture(number, column, title), each.images[number], row, maps[number])
                mosaic.under(number, columns, rf"$\mathcal{{L}}_{{SS}}$ = {explanation.suppression[number]:.3f}")
    return mosaic.figure


@matplotlib.rc_context(STYLE)
def figure3(examples: Mapping[str, Examples], *, seed: int) -> Figure:
    """Figure 3: the image, and the target's map and probability before and after guidance.

    Args:
        examples: by model, all of the same pairs. Each pair is a row.
        seed: the seed with which the pairs were chosen, for the note under the figure.

    Raises:
        ValueError: the models show different pairs.
    """
    rows = _rows(examples)
    note = "Eq. 3 for the target class, above each map its probability. " + _selection(len(rows), seed)
    mosaic = _Mosaic(list(examples), ("",), ("before guidance", "after guidance"), len(rows), side=1.3, note=note)
    _images(mosaic, next(iter(examples.values())), rows)
    for position, each in enumerate(examples.values()):
        for number, row in enumerate(rows):
            for half, explanation in enumerate((each.before, each.after)):
                title = f"{_short(row['class_name'], 16)} {explanation.target_probability[number]:.2f}"
                axes = mosaic.picture(number, 1 + 2 * position + half, title)
                _draw(axes, each.images[number], row, explanation.l_c[number])
    return mosaic.figure
