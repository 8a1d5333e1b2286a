"""What the workflow costs besides its steps' work: ``uv run python benchmarks/overhead.py`` after ``snakemake``.

Of the cores' time between the first job's start and the last one's end, by the jobs' benchmark files: the time in which a core
had no job, the time in which jobs started (Python, torch, pandas; measured here, as many at once as there are cores), the rest.
"""

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

# What a job imports before it does anything, by rule; the others import what maps do.
LIGHT = {"table": "ibsgl.tables, scipy.stats", "scores": "pyarrow.parquet", "index": "ibsgl.data.voc"}
HEAVY = "torch, pandas, ibsgl.evaluation, ibsgl.data.loading"


def start_seconds(modules: str, cores: int) -> float:
    """Seconds from a job's start to its first own line; the mean over one job a core, after a first round."""
    for _ in range(2):
        began = time.perf_counter()
        jobs = [subprocess.Popen([sys.executable, "-c", f"import ibsgl.cli, {modules}"]) for _ in range(cores)]
        ended = [(job.wait(), time.perf_counter() - began)[1] for job in jobs]
    return sum(ended) / len(ended)


def jobs_of(results: Path) -> pd.DataFrame:
    """One row per job of a finished run: ``name``, ``start`` and ``end`` in seconds since the epoch."""
    rows = []
    for file in sorted((results / "benchmarks").rglob("*.tsv")):
        end = file.stat().st_mtime
        seconds = float(pd.read_csv(file, sep="\t")["s"].iloc[0])
        rows.append((file.relative_to(results / "benchmarks").with_suffix("").as_posix(), end - seconds, end))
    return pd.DataFrame(rows, columns=["name", "start", "end"])


def kind(name: str) -> str:
    """The modules that a job imports."""
    parts = name.split("/")
    if "scores" in parts and not parts[-1].isdigit():
        return LIGHT["scores"]
    return next((modules for rule, modules in LIGHT.items() if parts[0].startswith(rule)), HEAVY)


@app.command()
def main(
    results: Annotated[Path, typer.Argument(help="Results of one uninterrupted run.")] = Path("results/shapes"),
    cores: Annotated[int, typer.Option(min=1, help="Cores of that run.")] = 2,
) -> None:
    """Print where the cores' time went."""
    jobs = jobs_of(results)
    if jobs.empty:
        raise typer.BadParameter(f"{results}/benchmarks holds no job; run snakemake first", param_hint="RESULTS")
    kinds = jobs["name"].map(kind)
    start = kinds.map({modules: start_seconds(modules, cores) for modules in kinds.unique()})
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
        ("no job on a core", whole - seconds.sum()),
    ):
        table.add_row(what, f"{value:.0f}", f"{value / whole:.1%}")
    console.print(table)


if __name__ == "__main__":
    app()
