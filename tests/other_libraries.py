"""Every adapted method of another library at small settings, and the tables of them in the documentation.

``python -m tests.other_libraries`` writes the tables in docs/other-libraries.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from ibsgl.attribution.adapters import captum, grad_cam, zennit

PAGE = Path(__file__).parents[1] / "docs" / "other-libraries.md"
# A generated part stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
TABLE = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

# Arguments without which a method cannot be called.
_NEEDED = {"Occlusion": {"sliding_window_shapes": [3, 16, 16]}}
# Further arguments, so that a test is short.
_SHORT = {
    "GradientShap": {"n_samples": 3, "stdevs": 0.1},
    "IntegratedGradients": {"n_steps": 4},
    "InternalInfluence": {"n_steps": 4},
    "KernelShap": {"n_samples": 8},
    "LayerConductance": {"n_steps": 4},
    "LayerGradientShap": {"n_samples": 3},
    "LayerIntegratedGradients": {"n_steps": 4},
    "Lime": {"n_samples": 8},
    "Occlusion": {"strides": [3, 8, 8]},
    "SESS": {"num_scales": 2},
    "ShapleyValueSampling": {"n_samples": 2},
}


def _needed(method: str, kind: captum._Kind) -> dict:
    return ({kind.grid: 2} if kind.grid else {}) | _NEEDED.get(method, {})


# By the name of a row, its keys in a config.
ROWS: dict[str, dict] = {
    **{
        f"captum-{method}": {
            "use": "captum",
            "method": method,
            "arguments": _needed(method, kind) | _SHORT.get(method, {}),
            "sign": "absolute",
        }
        for method, kind in captum.METHODS.items()
    },
    **{
        f"grad_cam-{method}": {"use": "grad_cam", "method": method, "arguments": _SHORT.get(method, {})}
        for method in grad_cam.METHODS
    },
    **{
        f"zennit-{composite}": {"use": "zennit", "composite": composite, "sign": "positive"}
        for composite in zennit.COMPOSITES
    },
    **{
        f"zennit-{attributor}": {
            "use": "zennit",
            "composite": "epsilon_plus",
            "attributor": attributor,
            "arguments": {"n_iter": 2},
            "sign": "positive",
        }
        for attributor in ("smooth_grad", "integrated_gradients")
    },
}


def _as_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with_refused(works: dict[str, list[str]], refused: Mapping[str, str], columns: int) -> list[list[str]]:
    rows = {name: [f"`{name}`", "yes", *cells] for name, cells in works.items()}
    rows |= {name: [f"`{name}`", "no", *["—"] * (columns - 1), reason] for name, reason in refused.items()}
    return [rows[name] for name in sorted(rows, key=str.lower)]


def _images(alone: bool) -> str:
    return "one" if alone else "a batch"


def tables() -> dict[str, str]:
    """The tables by library, as Markdown."""
    of_captum = {}
    for method, kind in captum.METHODS.items():
        needs = ", ".join(f"`{key}`" for key in _needed(method, kind))
        of_captum[method] = [
            "stem's end" if kind.layer else "image",
            _images(kind.alone),
            f"needs {needs}" if needs else "",
        ]
    of_grad_cam = {
        method: ["whole network" if kind.whole else "head", _images(kind.alone), ""]
        for method, kind in grad_cam.METHODS.items()
    }
    of_zennit = {composite: [""] for composite in zennit.COMPOSITES}
    return {
        "captum": _as_table(
            ["method", "works", "explains", "images per call", "note"], _with_refused(of_captum, captum.REFUSED, 3)
        ),
        "grad-cam": _as_table(
            ["method", "works", "passes through", "images per call", "note"],
            _with_refused(of_grad_cam, grad_cam.REFUSED, 3),
        ),
        "zennit": _as_table(["composite", "works", "note"], _with_refused(of_zennit, zennit.REFUSED, 1)),
    }


def rewritten(text: str) -> str:
    """``text`` with every table made anew."""
    known = tables()
    found = [match["name"] for match in TABLE.finditer(text)]
    if sorted(found) != sorted(known):
        raise ValueError(f"{PAGE.name} has the tables {sorted(found)} and needs {sorted(known)}")
    return TABLE.sub(lambda match: f"{match[1]}\n{known[match['name']]}\n\n{match[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
