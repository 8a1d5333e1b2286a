"""How much time the workflow takes besides the work of its steps.

Run ``uv run python benchmarks/overhead.py`` after ``snakemake``. The cores' time, from the start of the first job to the end of
the last, has three parts: cores without a job, starting jobs, and work. The times of the jobs are in Snakemake's benchmark
files. How long a job takes to start is measured here, with one process per core, as the run has started its jobs: by the server
of ``ibsgl.warm`` or, with ``IBSGL_WARM=off``, each by itself.
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

from ibsgl import lifetime
from ibsgl.warm import server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

# A job up to where its work begins: it reads its settings when it has imported everything, and these are no settings.
JOB = "ibsgl evaluate --model m --index i --root r --weights v/w --statistics s --bottleneck b --out o --settings {}"


def start_seconds(cores: int) -> tuple[float, float]:
    """Seconds to start the server, and to start one job: the mean over ``cores`` parallel jobs, in a second round."""
    # As the workflow's jobs, with bytecode from the round before.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.update(dict.fromkeys(server.THREADS, "1"), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    os.environ[lifetime.VARIABLE] = str(os.getpid())
    began, server_seconds = time.perf_counter(), 0.0
    server.start(1)
    if server.wait_until_ready():
        server_seconds = time.perf_counter() - began
    for _ in range(2):
        began = time.perf_counter()
        jobs = [subprocess.Popen(JOB.split(), stderr=subprocess.PIPE, text=True) for _ in range(cores)]
        ended = [(job.communicate()[1], time.perf_counter() - began) for job in jobs]
        if wrong := [said for said, _ in ended if "Invalid value for --settings" not in said]:
            raise RuntimeError(f"a job did not come to its settings: {wrong[0]}")
    return server_seconds, sum(seconds for _, seconds in ended) / len(ended)


def read_jobs(results: Path) -> pd.DataFrame:
    """One row per job of a finished run: ``name``, ``start`` and ``end`` in seconds since the epoch."""
    rows = []
    for file in sorted((results / "benchmarks").rglob("*.tsv")):
        end = file.stat().st_mtime
        seconds = float(pd.read_csv(file, sep="\t")["s"].iloc[0])
        rows.append((file.relative_to(results / "benchmarks").with_suffix("").as_posix(), end - seconds, end))
    return pd.DataFrame(rows, columns=["name", "start", "end"])


@app.command()
def main(
    results: Annotated[Path, typer.Argument(help="Results folder of one uninterrupted run.")] = Path("results/shapes"),
    cores: Annotated[int, typer.Option(min=1, help="Number of cores of that run.")] = 2,
) -> None:
    """Print how the cores spent their time."""
    jobs = read_jobs(results)
    if jobs.empty:
        raise typer.BadParameter(f"{results}/benchmarks has no jobs; run snakemake first", param_hint="RESULTS")
    of_server, of_job = start_seconds(cores)
    seconds = jobs["end"] - jobs["start"]
    whole = cores * (jobs["end"].max() - jobs["start"].min())
    starting = of_server + seconds.clip(upper=of_job).sum()
    console = Console()
    console.print(f"{results}: {len(jobs)} jobs, {whole / cores:.0f} s on {cores} cores", soft_wrap=True)
    console.print(f"starting takes {of_job:.2f} s for a job, and {of_server:.1f} s for the server", soft_wrap=True)
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
