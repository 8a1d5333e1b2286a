"""Figure 4: deletion curves of every variant, with the areas under them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ibsgl.metrics.deletion import area_under
from ibsgl.reporting.columns import PAIR
from ibsgl.reporting.figures.style import LETTERS_PER_INCH, LINE_HEIGHT, NOTE_STYLE, STYLE
from ibsgl.reporting.measurements import read_table
from ibsgl.reporting.statistics import crossed_estimate
from ibsgl.training.variants import VARIANTS

# Label, colour and dashes of each variant's curve. The colours are those of Okabe and Ito, which colour-blind readers can
# distinguish. In black and white the dashes distinguish the curves.
_CURVES = {
    "pretrained": ("before guidance", "#0072B2", (0, (4, 1.5))),
    "control": ("control (no guidance)", "#6E6E6E", (0, (1, 1.2))),
    "guided": ("after guidance", "#D55E00", "solid"),
}


def read_curves(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The deletion curves of the pretrained network, the control and the guided network as one frame.

    Args:
        folders: ``…/<model>/<replicate>/evaluation/<shard>`` with ``curves.parquet``: the columns of
            :func:`ibsgl.evaluation.deletion.deletion_curves`, ``model``, ``variant`` and ``replicate``.

    Returns:
        their rows in the order of ``folders``.

    Raises:
        ValueError: there are no folders, or a file has other columns.
    """
    frames = []
    for folder in map(Path, folders):
        curves = read_table(folder, "curves")
        frames.append(curves[curves["variant"].isin(list(_CURVES))])
    if not frames:
        raise ValueError("there are no deletion curves to draw")
    return pd.concat(frames, ignore_index=True)


@matplotlib.rc_context(STYLE)
def figure4(curves: pd.DataFrame, *, r: Mapping[str, float]) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: the target's probability as the important region is deleted, a panel per model, a curve per variant.

    Args:
        curves: one row per ``model``, ``variant`` (pretrained, control, guided), ``replicate``, ``image_id``, ``class_name``,
            ``repeat`` and ``fraction`` of the region in [0,1], with ``probability``.
        r: each model's share of the pixels that is the important region.

    Returns:
        the figure, and the plotted values, one row per (model, variant, fraction): ``probability``, the mean over
        pairs, repeats and replicates; ``low`` and ``high``, its 95 % interval over images and replicates
        (:func:`ibsgl.reporting.statistics.crossed_estimate`); ``repeat_low`` and ``repeat_high``, the lowest and highest of the
        repeats' own means; ``area``, ``area_low`` and ``area_high``, the area under the variant's curve with its interval;
        ``pairs``, ``images``, ``repeats`` and ``replicates``, how many there were.

    Raises:
        ValueError: curves are incomplete or doubled, a variant is unknown, or the variants of a model were not measured on
            the same pairs.
    """
    table = _deletion_table(curves)
    models = list(table["model"].unique())
    width = 3.4 * len(models)
    lines = textwrap.wrap(_deletion_note(table), int(width * LETTERS_PER_INCH))
    figure = Figure(figsize=(width, 3.5 + LINE_HEIGHT * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for variant, rows in table[table["model"] == model].groupby("variant", sort=False):
            label, color, dashes = _CURVES[variant]
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
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", **NOTE_STYLE)
    return figure, table


def _deletion_table(curves: pd.DataFrame) -> pd.DataFrame:
    """The plotted values of every model and variant; see :func:`figure4`."""
    unknown = sorted(set(curves["variant"]) - set(_CURVES))
    if unknown:
        raise ValueError(f"variant {unknown[0]!r} is unknown; Figure 4 shows {', '.join(_CURVES)}")
    tables = []
    for model, model_curves in curves.groupby("model", sort=False):
        reference = None
        present = set(model_curves["variant"])
        for variant in (variant for variant in VARIANTS if variant in present):
            name = f"{model}/{variant}"
            table, pairs = _plotted_values(model_curves[model_curves["variant"] == variant], name=name)
            reference = pairs if reference is None else reference
            if len(reference.symmetric_difference(pairs)):
                raise ValueError(f"{name} and the model's other variants were not measured on the same pairs")
            table.insert(0, "model", model)
            table.insert(1, "variant", variant)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _plotted_values(curves: pd.DataFrame, *, name: str) -> tuple[pd.DataFrame, pd.MultiIndex]:
    """The plotted values of one variant, and its pairs. ``name`` is for error messages."""
    if curves.duplicated(["replicate", *PAIR, "repeat", "fraction"]).any():
        raise ValueError(f"{name}: some deletion curves are doubled; give each folder only once")
    wide = curves.pivot(index=["replicate", *PAIR, "repeat"], columns="fraction", values="probability")
    pairs = wide.index.droplevel(["replicate", "repeat"]).unique()
    repeats, replicates = wide.index.unique("repeat"), wide.index.unique("replicate")
    if wide.isna().to_numpy().any() or len(wide) != len(pairs) * len(repeats) * len(replicates):
        raise ValueError(f"{name}: the deletion curves are incomplete; delete the folders and compute them again")
    fractions = wide.columns.to_numpy(dtype=np.float64)
    areas = area_under(torch.tensor(wide.to_numpy()), fractions.tolist()).numpy()
    # The area is one more value of each curve. An image's value is its part in the mean over the pairs.
    of_pairs = wide.assign(area=areas).groupby(level=["replicate", *PAIR]).mean()
    away = of_pairs - of_pairs.groupby("replicate").transform("mean")
    of_images = away.groupby(["replicate", "image_id"]).sum()
    images = of_images.index.unique("image_id")
    parts = of_images.to_numpy().reshape(len(replicates), len(images), -1) * len(images) / len(pairs)
    values = of_pairs.groupby("replicate").mean().to_numpy()[:, None] + parts
    mean, low, high = np.array(
        [(one.mean, one.low, one.high) for one in map(crossed_estimate, np.moveaxis(values, 2, 0))]
    ).T
    repeat_means = wide.groupby(level="repeat").mean()
    table = pd.DataFrame(
        {
            "fraction": fractions,
            "probability": mean[:-1],
            "low": low[:-1],
            "high": high[:-1],
            "repeat_low": repeat_means.min().to_numpy(),
            "repeat_high": repeat_means.max().to_numpy(),
            "area": mean[-1],
            "area_low": low[-1],
            "area_high": high[-1],
            "pairs": len(pairs),
            "images": len(images),
            "repeats": len(repeats),
            "replicates": len(replicates),
        }
    )
    return table, pairs


def _deletion_note(table: pd.DataFrame) -> str:
    counts = {
        model: f"{rows['pairs'].iloc[0]} (image, class) pairs of {rows['images'].iloc[0]} images, "
        f"{rows['repeats'].iloc[0]} random orders of deletion, trainings: {rows['replicates'].iloc[0]}"
        for model, rows in table.groupby("model", sort=False)
    }
    # The models usually share the data. Then one count is enough.
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
    else:
        count = "; ".join(f"{model}: {count}" for model, count in counts.items())
    return (
        f"{count}. Light band: 95 % interval over images and, with several, over trainings; dark band: "
        "range of the orders' means. A curve that starts lower has a smaller area for that reason alone."
    )
