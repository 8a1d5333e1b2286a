"""What the figures share: fonts, colours, the note under a figure, and how a figure is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from ibsgl.seals import sealed

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DPI = 200
COLORMAP = "viridis"
NOTE_STYLE: dict[str, Any] = {"size": 6.5, "color": "0.25", "linespacing": 1.25}
# Letters of the note per inch of width, and the height of one of its lines in inches.
LETTERS_PER_INCH = 19.5
LINE_HEIGHT = 0.122
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def save(figure: Figure, png: str | Path) -> None:
    """Write ``figure`` to ``png`` at 200 dpi, and as PDF beside it. Equal figures give equal bytes.

    Raises:
        ValueError: ``png`` does not end in ``.png``.
    """
    png = Path(png)
    if png.suffix != ".png":
        raise ValueError(f"{png}: a figure's file must end in .png; the PDF goes beside it")
    for path, metadata in ((png, None), (png.with_suffix(".pdf"), {"CreationDate": None})):
        # Publishers want TrueType fonts. Matplotlib's default is Type 3.
        with sealed(path) as temporary, matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(temporary, dpi=DPI, metadata=metadata)
