"""Commands of workflow/rules/data.smk: the images and their index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ibsgl import seals
from ibsgl.cli.app import app
from ibsgl.cli.options import Out, Root, Settings, parse


@app.command()
def data(settings: Settings, out: Annotated[Path, typer.Option(help="The folder to make.")]) -> None:
    """Generate the images of a data set that has none of its own."""
    from ibsgl.config.steps import Data

    step = parse(Data, settings)
    step.data.generate(out, step.seed)
    seals.seal_folder(out)


@app.command()
def fetch(
    root: Root,
    mirrors: Annotated[list[str], typer.Option("--mirror", help="Address or folder with the archives. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="What was found or downloaded (JSON).")],
    folder: Annotated[Path, typer.Option("--folder", help="Where downloads are kept.")] = Path("data"),
) -> None:
    """Download, verify and unpack a data set in VOC layout. An existing folder is used as it is."""
    from ibsgl.config.steps import Fetch
    from ibsgl.data import download
    from ibsgl.files import write_json
    from ibsgl.provenance import folder_digest

    step = parse(Fetch, settings)
    fetched = download.fetch(root, step.archives, mirrors=mirrors, folder=folder)
    origin = step.to_dict()["archives"] if fetched else "taken as it is"
    write_json(out, {"root": root.as_posix(), "archives": origin, "files": folder_digest(root)})


@app.command()
def index(root: Root, settings: Settings, out: Out) -> None:
    """Read a data set's folder once: check it, list its (image, class) pairs, compute its digest."""
    from ibsgl.config.steps import Index

    step = parse(Index, settings)
    seals.check_folder(root)
    found = step.data.read(root, step.seed)
    with seals.sealed(out) as temporary:
        found.save(temporary)
