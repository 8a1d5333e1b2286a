"""Figures 2, 3 and 4: what saliency suppression and guidance do to the maps, and to the deletion curve.

Nothing is picked by eye: :func:`choose_pairs` decides which images are shown before any map is computed, and every
figure says under itself how it was made. The numbers behind Figure 4 come back as a table.
"""

from __future__ import annotations

import os
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ibsgl.guidance import other_class
from ibsgl.metrics.deletion import area_under
from ibsgl.network import SplitNetwork, evaluating, upsample
from ibsgl.randomness import derive_seed
from ibsgl.saliency import gradient_saliency
from ibsgl.statistics import bootstrap_interval
from ibsgl.suppression import suppression_loss

if TYPE_CHECKING:
    from ibsgl.data.loading import VOCData

DPI = 200
COLORMAP = "viridis"
_NOTE = {"size": 6.5, "color": "0.25", "linespacing": 1.25}
_LETTERS, _LINE = 19.5, 0.122  # letters an inch and inches a line of the note
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
# Colours of Okabe and Ito, which colour-blind readers tell apart; the dashes do it in black and white.
_NETWORKS = {
    "pretrained": ("before guidance", "#0072B2", (0, (4, 1.5))),
    "control": ("control (no guidance)", "#6E6E6E", (0, (1, 1.2))),
    "guided": ("after guidance", "#D55E00", "solid"),
}


def choose_pairs(pairs: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The (image, class) pairs to show: each class in turn, within a class by a hash of the image id.

    Args:
        pairs: one row per image and class, with ``image_id`` and ``class_name``.
        count: how many to take, at least 1.
        seed: decides the order of the classes and of each class's images; the order of the rows has no part in it.

    Returns:
        ``count`` rows of ``pairs`` that show different images, or one per image where there are fewer images than that.
    """
    if count < 1:
        raise ValueError(f"at least 1 example must be shown, not {count}")
    images, names = pairs["image_id"].to_numpy(), pairs["class_name"].to_numpy()
    ranked = sorted(range(len(pairs)), key=lambda row: derive_seed(seed, "figure", images[row]))
    classes = sorted(set(names), key=lambda name: derive_seed(seed, "figure class", name))
    queues = [deque(row for row in ranked if names[row] == name) for name in classes]
    chosen, shown = [], set()
    while any(queues) and len(chosen) < count:
        for queue in queues:
            while queue and images[queue[0]] in shown:
                queue.popleft()
            if queue:
                chosen.append(queue.popleft())
                shown.add(images[chosen[-1]])
    return pairs.iloc[chosen[:count]]


# Figures 2 and 3 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Explanation:
    """What one network makes of N images: Eq. 3 for the target class c and for the likeliest other class p.

    Attributes:
        l_c, l_p: (N,S,S) L^c and L^p at image size, in units of the logit, ≥ 0.
        other: (N,) int64, p; of the classes that the image does not show on a multi-label network.
        target_probability, other_probability: (N,) of c and p, in [0,1].
        suppression: (N,) L_SS (Eq. 1) at the size of the feature map, in [0, ½].
    """

    l_c: torch.Tensor
    l_p: torch.Tensor
    other: torch.Tensor
    target_probability: torch.Tensor
    other_probability: torch.Tensor
    suppression: torch.Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """N example images and one model's networks' explanations of them.

    Attributes:
        pairs: (N rows) of the data set's index.
        images: (N,3,S,S) in [0,1].
        class_names: the data set's K names.
        r: of Eq. 1.
        before, after: without and with guidance.
    """

    pairs: pd.DataFrame
    images: torch.Tensor
    class_names: tuple[str, ...]
    r: float
    before: Explanation
    after: Explanation


def _explain(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, r: float
) -> Explanation:
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(images)
            logits = network.head(features)
        other = other_class(logits, targets, labels if network.multilabel else None)
        l_c, l_p = (gradient_saliency(network.head, features, classes) for classes in (targets, other))
    probabilities = network.probabilities(logits)
    parts = (
        upsample(l_c, images.shape[-2:]),
        upsample(l_p, images.shape[-2:]),
        other,
        probabilities.gather(1, targets[:, None])[:, 0],
        probabilities.gather(1, other[:, None])[:, 0],
        suppression_loss(l_c, l_p, r),
    )
    return Explanation(*(part.cpu() for part in parts))


def suppression_examples(
    before: SplitNetwork,
    after: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    device: torch.device,
    *,
    r: float = 0.35,
) -> Examples:
    """Explain ``pairs`` with both networks of a model, all images at once.

    Args:
        before, after: the network without and with guidance, on ``device``.
        data: at the networks' input size.
        pairs: N rows of the index, such as :func:`choose_pairs` gives.
        r: fraction of the pixels in Mask_r (Eq. 1).
    """
    ids = list(pairs["image_id"])
    images = data.images(ids)
    targets = torch.tensor(pairs["target"].to_numpy(), device=device)
    labels = torch.zeros(len(ids), len(data.index.class_names), dtype=torch.bool)
    present = data.index.table.groupby("image_id")["target"]
    for row, image_id in zip(labels, ids, strict=True):
        row[present.get_group(image_id).tolist()] = True
    seen = (images.to(device), targets, labels.to(device), r)
    return Examples(pairs, images, tuple(data.index.class_names), r, _explain(before, *seen), _explain(after, *seen))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


class _Mosaic:
    """A sheet of square pictures laid out in inches: the images on the left, then for every model pairs of maps."""

    _MARGIN, _NEAR, _APART, _TITLE, _FOOT, _HEADING = 0.08, 0.04, 0.14, 0.15, 0.17, 0.17

    def __init__(
        self, models: Sequence[str], pairs: Sequence[str], columns: tuple[str, str], rows: int, side: float, note: str
    ):
        """``pairs`` heads the pairs of each model, ``columns`` the maps of a pair; ``note`` goes underneath."""
        self.side = side
        lefts, cursor = [self._MARGIN], self._MARGIN + side
        for _ in models:
            cursor += self._APART
            for _ in pairs:
                lefts += [cursor + self._APART, cursor + self._APART + side + self._NEAR]
                cursor = lefts[-1] + side
        self.lefts, self.width = lefts, cursor + self._MARGIN
        lines = textwrap.wrap(note, int(self.width * _LETTERS))
        # The note's lines, then the colour bar with its numbers.
        under = 0.08 + _LINE * len(lines)
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
            of_model = lefts[1 + number * per_model :][:per_model]
            self._headline(of_model, top + 0.05 + (headings - 1) * self._HEADING, model, weight="bold", size=8.5)
            for position, pair in enumerate(pairs):
                of_pair = of_model[2 * position : 2 * position + 2]
                if pair:
                    self._headline(of_pair, top + 0.05 + self._HEADING, pair)
                for left, column in zip(of_pair, columns, strict=True):
                    self._write(left + side / 2, top + 0.05, column)
        self._write(self._MARGIN, under, "\n".join(lines), ha="left", va="top", **_NOTE)
        self._color_bar(under + 0.26)

    def _write(self, x: float, y: float, text: str, **style) -> None:
        style = {"ha": "center", "va": "bottom"} | style
        self.figure.text(x / self.width, y / self.height, text, **style)

    def _headline(self, lefts: Sequence[float], y: float, text: str, **style) -> None:
        """``text`` over several columns, underlined from the first to the last."""
        right = lefts[-1] + self.side
        self._write((lefts[0] + right) / 2, y, text, **style)
        ends = [lefts[0] / self.width, right / self.width]
        self.figure.add_artist(Line2D(ends, [(y - 0.02) / self.height] * 2, color="0.6", linewidth=0.5))

    def _color_bar(self, y: float) -> None:
        length = min(2.0, 0.4 * self.width)
        # Room for the last number, which is centred under the bar's end.
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
        """Empty axes with ``title`` above, taken literally."""
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

    def under(self, row: int, columns: Sequence[int], text: str, **style) -> None:
        """``text`` centred under one picture or under several."""
        middle = (self.lefts[columns[0]] + self.lefts[columns[-1]] + self.side) / 2
        self._write(middle, self.bottoms[row] - 0.03, text, va="top", size=7, **style)


def _draw(axes: Axes, image: torch.Tensor, row: pd.Series, saliency: torch.Tensor | None = None) -> None:
    """The image (3,S,S), or with ``saliency`` (S,S) that over the grey image; the class's boxes outlined on either."""
    # In the file's own pixels, those of its boxes, stretched to a square as the network sees it.
    place = {"extent": (0, row["width"], row["height"], 0), "aspect": "auto"}
    pixels = image.permute(1, 2, 0).numpy()
    if saliency is None:
        axes.imshow(pixels, **place)
    else:
        axes.imshow(pixels @ np.array([0.299, 0.587, 0.114]), cmap="gray", vmin=0, vmax=1, **place)
        highest = float(saliency.max())
        shown = (saliency / highest if highest > 0 else saliency).numpy()
        axes.imshow(shown, cmap=COLORMAP, vmin=0, vmax=1, alpha=0.6, **place)
        if highest == 0:
            axes.text(0.5, 0.5, "all zero", transform=axes.transAxes, ha="center", va="center", color="white")
    for x0, y0, x1, y1 in row["boxes"]:
        outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8)
        outline.set_path_effects([withStroke(linewidth=1.7, foreground="black")])
        axes.add_patch(outline)


def _rows(examples: Mapping[str, Examples]) -> list[pd.Series]:
    """The pairs that all models show; ``ValueError`` if they do not show the same."""
    first, *others = (list(zip(e.pairs["image_id"], e.pairs["target"], strict=True)) for e in examples.values())
    if any(other != first for other in others):
        raise ValueError(f"the models {', '.join(examples)} must be shown on the same examples; choose the pairs once")
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


@matplotlib.rc_context(_STYLE)
def figure2(examples: Mapping[str, Examples], *, seed: int) -> Figure:
    """Figure 2: the maps of the target class c and of the likeliest other class p, before and after guidance.

    Args:
        examples: by model, all of the same pairs, which become the rows.
        seed: that the pairs were chosen with, for the note under the figure.
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
        for half, seen in enumerate((each.before, each.after)):
            columns = [1 + 4 * position + 2 * half, 2 + 4 * position + 2 * half]
            for number, row in enumerate(rows):
                named = (
                    (row["class_name"], seen.target_probability, seen.l_c),
                    (each.class_names[seen.other[number]], seen.other_probability, seen.l_p),
                )
                for column, (name, probability, maps) in zip(columns, named, strict=True):
                    title = f"{_short(name, 12)} {probability[number]:.2f}"
                    _draw(mosaic.picture(number, column, title), each.images[number], row, maps[number])
                mosaic.under(number, columns, rf"$\mathcal{{L}}_{{SS}}$ = {seen.suppression[number]:.3f}")
    return mosaic.figure


@matplotlib.rc_context(_STYLE)
def figure3(examples: Mapping[str, Examples], *, seed: int) -> Figure:
    """Figure 3: the image, and the target's map and probability before and after guidance.

    Args:
        examples: by model, all of the same pairs, which become the rows.
        seed: that the pairs were chosen with, for the note under the figure.
    """
    rows = _rows(examples)
    note = "Eq. 3 for the target class, above each map its probability. " + _selection(len(rows), seed)
    mosaic = _Mosaic(list(examples), ("",), ("before guidance", "after guidance"), len(rows), side=1.3, note=note)
    _images(mosaic, next(iter(examples.values())), rows)
    for position, each in enumerate(examples.values()):
        for number, row in enumerate(rows):
            for half, seen in enumerate((each.before, each.after)):
                title = f"{_short(row['class_name'], 16)} {seen.target_probability[number]:.2f}"
                axes = mosaic.picture(number, 1 + 2 * position + half, title)
                _draw(axes, each.images[number], row, seen.l_c[number])
    return mosaic.figure


# Figure 4 -----------------------------------------------------------------------------------------------------------


def _curve(curves: pd.DataFrame, name: str, seed: int, resamples: int) -> tuple[pd.DataFrame, pd.Index]:
    """The plotted values of one network, and its pairs."""
    pair = ["image_id", "class_name"]
    if curves.duplicated([*pair, "repeat", "fraction"]).any():
        raise ValueError(f"{name}: some deletion curves are there twice; was a file given twice?")
    wide = curves.pivot(index=[*pair, "repeat"], columns="fraction", values="probability")
    pairs = wide.index.droplevel("repeat").unique()
    repeats = wide.index.unique("repeat")
    if wide.isna().to_numpy().any() or len(wide) != len(pairs) * len(repeats):
        raise ValueError(f"{name}: the deletion curves are incomplete; delete the file and compute them again")
    fractions = wide.columns.to_numpy(dtype=np.float64)
    areas = area_under(torch.tensor(wide.to_numpy()), fractions.tolist()).numpy()
    # The area is one more quantity of every curve, resampled with it.
    values = wide.assign(area=areas).groupby(level=pair, sort=True).mean().to_numpy()
    images = wide.groupby(level=pair, sort=True).size().index.get_level_values("image_id")
    low, high = bootstrap_interval(values, images, seed=seed, resamples=resamples)
    of_repeats = wide.groupby(level="repeat").mean()
    mean = values.mean(axis=0)
    table = pd.DataFrame(
        {
            "fraction": fractions,
            "probability": mean[:-1],
            "low": low[:-1],
            "high": high[:-1],
            "repeat_low": of_repeats.min().to_numpy(),
            "repeat_high": of_repeats.max().to_numpy(),
            "area": mean[-1],
            "area_low": low[-1],
            "area_high": high[-1],
            "pairs": len(pairs),
            "images": images.nunique(),
            "repeats": len(repeats),
        }
    )
    return table, pairs


def _deletion_table(curves: pd.DataFrame, seed: int, resamples: int) -> pd.DataFrame:
    unknown = sorted(set(curves["network"]) - set(_NETWORKS))
    if unknown:
        raise ValueError(f"network {unknown[0]!r} has no place in Figure 4; it shows {', '.join(_NETWORKS)}")
    tables = []
    for model, of_model in curves.groupby("model", sort=False):
        first = None
        for network in (name for name in _NETWORKS if name in set(of_model["network"])):
            name = f"{model}/{network}"
            table, pairs = _curve(of_model[of_model["network"] == network], name, seed, resamples)
            first = first if first is not None else pairs
            if len(first.symmetric_difference(pairs)):
                raise ValueError(f"{name} and the model's other networks were not measured on the same pairs")
            table.insert(0, "model", model)
            table.insert(1, "network", network)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


@matplotlib.rc_context(_STYLE)
def figure4(
    curves: pd.DataFrame, *, r: Mapping[str, float], seed: int, resamples: int = 10000
) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: the target's probability as the important region is deleted, a panel per model, a curve per network.

    Args:
        curves: one row per ``model``, ``network`` (pretrained, control, guided), ``image_id``, ``class_name``,
            ``repeat`` and ``fraction`` of the region in [0,1], with ``probability``.
        r: each model's share of the pixels that is the important region.
        seed, resamples: of the bootstrap.

    Returns:
        the figure, and the plotted values, one row per (model, network, fraction): ``probability``, the mean over pairs
        and repeats; ``low`` and ``high``, its 95 % bootstrap interval over images; ``repeat_low`` and ``repeat_high``,
        the lowest and highest of the repeats' own means; ``area``, ``area_low`` and ``area_high``, the area under the
        network's curve with its interval; ``pairs``, ``images`` and ``repeats``, how many there were.

    Raises:
        ValueError: curves that are incomplete, there twice, of an unknown network, or of other pairs than the model's
            other networks'.
    """
    table = _deletion_table(curves, seed, resamples)
    models = list(table["model"].unique())
    note = _deletion_note(table)
    width = 3.4 * len(models)
    lines = textwrap.wrap(note, int(width * _LETTERS))
    figure = Figure(figsize=(width, 3.5 + _LINE * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for network, rows in table[table["model"] == model].groupby("network", sort=False):
            label, color, dashes = _NETWORKS[network]
            percent, first = 100 * rows["fraction"], rows.iloc[0]
            label += f": {first['area']:.3f} [{first['area_low']:.3f}, {first['area_high']:.3f}]"
            axes.fill_between(percent, rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0)
            axes.fill_between(percent, rows["repeat_low"], rows["repeat_high"], color=color, alpha=0.4, linewidth=0)
            axes.plot(percent, rows["probability"], color=color, linestyle=dashes, linewidth=1.6, label=label)
        axes.set(xlim=(0, 100), ylim=(0, 1), xlabel=f"deleted share of the top {100 * r[model]:g} % of the pixels (%)")
        axes.set_title(model, fontweight="bold", fontsize=8.5)
        axes.grid(linewidth=0.4, color="0.9")
        axes.set_axisbelow(True)
        legend = axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
            handlelength=2.6,
            title="area under the curve [95 % interval]",
        )
        legend.get_title().set_fontsize(7.5)
    panels[0].set_ylabel("mean probability of the target class")
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", **_NOTE)
    return figure, table


def _deletion_note(table: pd.DataFrame) -> str:
    counts = {
        model: f"{rows['pairs'].iloc[0]} (image, class) pairs of {rows['images'].iloc[0]} images, "
        f"{rows['repeats'].iloc[0]} random orders of deletion"
        for model, rows in table.groupby("model", sort=False)
    }
    # The models usually share the data, and then it need not be said twice.
    same = len(set(counts.values())) == 1
    said = next(iter(counts.values())) if same else "; ".join(f"{model}: {count}" for model, count in counts.items())
    return (
        f"{said}. Light band: 95 % bootstrap interval over images; dark band: range of the orders' means. A curve that "
        "starts lower has a smaller area for that reason alone."
    )


def save(figure: Figure, png: Path) -> None:
    """Write ``figure`` to ``png`` at 200 dpi and as PDF beside it, each whole under a temporary name and then renamed.

    The same figure gives the same bytes. ``ValueError`` if ``png`` does not end in ``.png``.
    """
    png = Path(png)
    if png.suffix != ".png":
        raise ValueError(f"{png}: a figure's file must end in .png; the PDF goes beside it")
    png.parent.mkdir(parents=True, exist_ok=True)
    for path, metadata in ((png, None), (png.with_suffix(".pdf"), {"CreationDate": None})):
        temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        try:
            # TrueType, which publishers ask for, instead of Type 3.
            with matplotlib.rc_context({"pdf.fonttype": 42}):
                figure.savefig(temporary, dpi=DPI, metadata=metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
