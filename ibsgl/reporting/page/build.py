"""Writing the report: one page, with its pictures, scripts and data in the same folder. It needs no server and no network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ibsgl.files import written

_TEMPLATES = "templates"
# Copied as they are.
_ASSETS = ("style.css", "browser.js", "tables.js")


def write_page(out: Path, context: Mapping[str, Any], maps: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``index.html`` and what it loads.

    Text from the data is escaped: the page's by the template engine, and the browser's, which a script shows, by the script.

    Args:
        out: the page. Files beside it are replaced.
        context: the values of the template; see ``templates/index.html.j2``.
        maps: by network, the data of :func:`ibsgl.reporting.page.content.browser`. Its pictures are in ``maps/<network>``.
    """
    environment = Environment(
        loader=PackageLoader("ibsgl.reporting.page", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html.j2").render(context, models=list(maps))
    assets = files("ibsgl.reporting.page") / _TEMPLATES
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in _ASSETS}
    texts["datatables.js"], texts["datatables.css"] = _datatables()
    # A script and no JSON file: a page from a folder (file://) may not fetch files.
    texts["maps.js"] = f"const MAPS = {json.dumps(maps, ensure_ascii=True, separators=(',', ':'), allow_nan=False)};\n"
    for name, text in {**texts, out.name: page}.items():
        with written(out.parent / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _datatables() -> tuple[str, str]:
    """DataTables as itables has it: the script and the styles. The script defines ``window.DataTable``.

    itables has a module, and a page from a folder may not import one.
    """
    folder = files("itables") / "html"
    script = (folder / "dt_bundle.js").read_text(encoding="utf-8")
    classic, changed = re.subn(r"export\{[^}]*?\b([\w$]+) as default\b[^}]*\};?", r"window.DataTable=\1;", script)
    if changed != 1:
        raise RuntimeError(
            "itables has its script in another form than expected; install the version in constraints.txt"
        )
    return f"(()=>{{{classic}\n}})();\n", (folder / "dt_bundle.css").read_text(encoding="utf-8")


def copy_figures(figures: Sequence[Path], folder: Path) -> None:
    """Copy each figure (PNG, with PDF beside it) to ``folder``, so that the report is whole without the rest of the results."""
    folder.mkdir(parents=True, exist_ok=True)
    for png in figures:
        for file in (png, png.with_suffix(".pdf")):
            with written(folder / file.name) as temporary:
                shutil.copyfile(file, temporary)
