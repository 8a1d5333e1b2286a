"""How much time the workflow takes besides the work of its steps.

Run ``uv run python benchmarks/overhead.py`` after ``snakemake``. The cores' time, from the start of the first job to the end of
the last, has three parts: cores without a job, starting jobs, and work. The times of the jobs are in Snakemake's benchmark
files. To start a job is to start Python and import modules such as torch. That is measured here, with one process per core.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

# The modules that a job imports before its work begins, by rule. The jobs of all other rules import OTHER_MODULES.
MODULES = {
    "tables": "ibsgl.config.steps, ibsgl.reporting.tables, ibsgl.reporting.formats",
    "claims": "ibsgl.config.steps, ibsgl.reporting.claims",
    "index": "ibsgl.config.steps, ibsgl.data.sources.voc",
}
OTHER_MODULES = "ibsgl.config.steps, ibsgl.evaluation.variants, ibsgl.data.loading"


def start_seconds(modules: str, cores: int) -> float:
    """Seconds to start a job: the mean over ``cores`` parallel processes that import ``modules``, in a second round."""
    # As the workflow's jobs, with bytecode from the round before.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", f"import ibsgl.cli, {modules}"]
    for _ in range(2):
        began = time.perf_counter()
        jobs = [subprocess.Popen(command, env=environment) for _ in range(cores)]
        ended = [(job.wait(), time.perf_counter() - began)[1] for job in jobs]
    return sum(ended) / len(ended)


def read_jobs(results: Path) -> pd.DataFrame:
    """One row per job of a finished run: ``name``, ``start`` and ``end`` in seconds since the epoch."""
    rows = []
    for file in sorted((results / "benchmarks").rglob("*.tsv")):
        end = file.stat().st_mtime
        seconds = float(pd.read_csv(file, sep="\t")["s"].iloc[0])
        rows.append((file.relative_to(results / "benchmarks").with_suffix("").as_posix(), end - seconds, end))
    return pd.DataFrame(rows, columns=["name", "start", "end"])


def modules_of(name: str) -> str:
    """The modules that the job ``name`` imports."""
    return next((modules for rule, modules in MODULES.items() if name.startswith(rule)), OTHER_MODULES)


@app.command()
def main(
    results: Annotated[Path, typer.Argument(help="Results folder of one uninterrupted run.")] = Path("results/shapes"),
    cores: Annotated[int, typer.Option(min=1, help="Number of cores of that run.")] = 2,
) -> None:
    """Print how the cores spent their time."""
    jobs = read_jobs(results)
    if jobs.empty:
        raise typer.BadParameter(f"{results}/benchmarks has no jobs; run snakemake first", param_hint="RESULTS")
    imported = jobs["name"].map(modules_of)
    start = imported.map({modules: start_seconds(modules, cores) for modules in imported.unique()})
    seconds = jobs["end"] - jobs["start"]
    whole = cores * (jobs["end"].max() - jobs["start"].min())
    starting = start.clip(upper=seconds).sum()
    console = Console()
    console.print(f"{results}: {len(jobs)} jobs, {whole / cores:.0f} s on {cores} cores", soft_wrap=True)
    table = Table(box=None)
    for heading in ("", "core-seconds", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, value in (
        ("work", seconds.sum() - starting),
        ("starting jobs", starting),
        ("cores without a job", whole - seconds.sum()),
    ):
        table.add_row(what, f"{value:.0f}", f"{value / whole:.1%}")
    console.print(table)


if __name__ == "__main__":
    app()
