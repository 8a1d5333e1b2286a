"""``ibsgl <step>``: every rule of the workflow is one of these commands, and a person can run each by hand.

``snakemake --printshellcmds`` (on by default here) shows the full command of every job. ``--settings`` is the part of the
config that the step's result depends on, as JSON or as ``@file``. ``ibsgl settings`` prints it for any step.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from ibsgl import seals
from ibsgl.lifetime import end_with_run

# Errors are plain lines. Boxes would break a key or a path at the terminal's width, and a log has no use for them.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ibsgl {version('ibsgl')}")
        raise typer.Exit


@app.callback(help=__doc__)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of ``ibsgl`` itself."""
    end_with_run()
    seals.begin()
