"""The training curves: how well each variant classifies the held-out images, epoch by epoch."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from ibsgl.reporting.figures.style import NOTE_STYLE, STYLE
from ibsgl.training.variants import PRETRAINED

# Colours of Okabe and Ito. Each variant has a dash pattern too.
_STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#CC79A7", "-."), ("#E69F00", (0, (1, 1))))


@matplotlib.rc_context(STYLE)
def training_curves(histories: pd.DataFrame) -> Figure:
    """A column per network: the held-out score while the classifier is trained, and while the other variants are.

    Args:
        histories: one row per training and epoch: ``model``, ``replicate``, ``variant``, ``epoch``, and
            ``held_out_<score>`` (a share; NaN where it was not measured).

    Raises:
        ValueError: there is no training.
    """
    if histories.empty:
        raise ValueError("no network of this run was trained")
    score = next((column for column in histories if column.startswith("held_out_") and column != "held_out_lost"), None)
    models = list(histories["model"].unique())
    figure = Figure(figsize=(3.6 * len(models), 4.6), layout="constrained")
    grid = figure.subplots(2, len(models), squeeze=False)
    for column, model in zip(grid.T, models, strict=True):
        rows = histories[histories["model"] == model]
        variants = sorted(rows["variant"].unique(), key=lambda name: (name != PRETRAINED, name))
        for axes, before in zip(column, (True, False), strict=True):
            shown = [name for name in variants if (name == PRETRAINED) == before]
            for number, variant in enumerate(shown):
                colour, dashes = _STYLES[number % len(_STYLES)]
                for replicate, of_training in rows[rows["variant"] == variant].groupby("replicate"):
                    name = {"label": variant} if replicate == rows["replicate"].min() else {}
                    if score is not None and of_training[score].notna().any():
                        axes.plot(
                            of_training["epoch"], 100 * of_training[score], color=colour, ls=dashes, marker=".", **name
                        )
            axes.set_title(f"{model}: {'the classifier' if before else 'trained further, with and without guidance'}")
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"{score.removeprefix('held_out_') if score else 'score'} of held-out images (%)")
            axes.xaxis.get_major_locator().set_params(integer=True)
            if axes.lines:
                axes.legend(fontsize=6)
    figure.supxlabel("A line is one training.", x=0.02, ha="left", **NOTE_STYLE)
    return figure
