"""Figures 2, 3 and 4: what saliency suppression and guidance do to the maps, and to the deletion curve.

:func:`choose_pairs` chooses the images before any map is computed. A note under every figure describes how it was made. The
values behind Figure 4 are returned as a table. Beside them are the training curves, and the agreement of the metrics.
"""

from ibsgl.reporting.figures.agreement import agreement_figure
from ibsgl.reporting.figures.deletion import figure4, read_curves
from ibsgl.reporting.figures.examples import Examples, Explanation, choose_pairs, suppression_examples
from ibsgl.reporting.figures.mosaic import figure2, figure3
from ibsgl.reporting.figures.style import save
from ibsgl.reporting.figures.training import training_curves

__all__ = [
    "Examples",
    "Explanation",
    "agreement_figure",
    "choose_pairs",
    "figure2",
    "figure3",
    "figure4",
    "read_curves",
    "save",
    "suppression_examples",
    "training_curves",
]
