"""Runs that are killed, run out of disk, read damaged files or lose MLflow must end with the same tables, or say why not.

    python tests/chaos                                      (half an hour or more on two cores)
    python tests/chaos --kills 4 --disk 1 --flips 24 --pairs 1 --tracking 1     (CI)

One run of tests/configs/minimal.yaml that nothing disturbs makes the tables that all others must make, byte for byte. All
random choices come from one seed; how far a run is at a moment depends on the machine.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# The folders and runs of the tests of the workflow.
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "workflow"))
from clones import GOOD, Case, Outcome, Workplace
from disturbances import bit_flips, full_disks, kills, pairs, tracking

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def summary(cases: list[Case]) -> Table:
    """How many cases of each disturbance ended in which way."""
    table = Table("disturbance", *(("cases", *Outcome, "seconds")))
    for disturbance in dict.fromkeys(case.disturbance for case in cases):
        these = [case for case in cases if case.disturbance == disturbance]
        counts = Counter(case.outcome for case in these)
        seconds = sum(case.seconds for case in these)
        table.add_row(disturbance, *map(str, (len(these), *(counts[outcome] for outcome in Outcome))), f"{seconds:.0f}")
    return table


@app.command(help=__doc__)
def main(
    kill: Annotated[int, typer.Option("--kills", min=0, help="SIGKILLs at random moments.")] = 30,
    disk: Annotated[int, typer.Option(min=0, help="Disks that become full.")] = 6,
    flip: Annotated[int, typer.Option("--flips", min=0, help="Bits flipped in files that jobs read.")] = 100,
    pair: Annotated[int, typer.Option("--pairs", min=0, help="Two runs at once in a folder.")] = 2,
    track: Annotated[int, typer.Option("--tracking", min=0, help="MLflow killed during a run.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for all cases (JSON).")] = None,
) -> None:
    """Disturb runs, print a table of how they ended, and exit with 1 if something was lost or silently wrong."""
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="ibsgl-chaos-"))
    stopped = False
    workplace, cases = Workplace(place), []
    # In a pipe rich takes 80 columns, too few for the table.
    console = Console(width=None if sys.stdout.isatty() else 160)
    show = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    todo = [(kills, kill), (full_disks, disk), (bit_flips, flip), (pairs, pair), (tracking, track)]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("the undisturbed run", total=sum(number for _, number in todo))
        workplace.run_reference()
        console.print(f"the undisturbed run took {workplace.seconds:.0f} s and made {len(workplace.expected)} tables")
        try:
            for disturb, number in todo:
                progress.update(bar, description=disturb.__name__.replace("_", " "))
                # One disturbance draws the same whatever is done before it.
                workplace.random = Random(f"{seed} {disturb.__name__}")
                for together in disturb(workplace, number):
                    cases += together
                    progress.advance(bar, len(together))
                    for case in together:
                        end = f"{case.outcome}{f' ({case.said})' if case.said else ''}"
                        show(f"{case.disturbance}: {case.what}: {end}")
        except KeyboardInterrupt:
            # What was found until then is shown.
            stopped = True
    console.print(summary(cases))
    console.print(f"{time.monotonic() - began:.0f} s{', stopped before the end' if stopped else ''}")
    bad = [case for case in cases if case.outcome not in GOOD]
    for case in bad:
        show(f"{case.outcome}: {case.disturbance}: {case.what}: {case.said}")
        if case.folder:
            show(f"    its folder: {case.folder}")
    if out:
        out.write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    if not bad:
        shutil.rmtree(place)
    # A traceback of Snakemake, whose disk became full at the wrong moment, is shown and is no failure.
    if stopped or any(case.outcome in (Outcome.LOST, Outcome.WRONG) for case in bad):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
