"""How long the workflow will still take: a line after each finished job.

Snakemake measures each job, into a file below ``results/<name>/benchmarks``. A job that has not run yet is expected to take as
long as the last time, or as the mean of the same kind of job, or as the mean of its rule.
"""

from __future__ import annotations

import csv
import logging
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

# Wildcards that change how long a job takes only a little.
_ALIKE = {"run", "replicate", "shard"}


def job_seconds(benchmark: str) -> float | None:
    """The seconds in a benchmark file of Snakemake, or ``None`` if there is no such file or it is being written."""
    try:
        with Path(benchmark).open(encoding="utf-8", newline="") as file:
            return fmean(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def in_words(seconds: float) -> str:
    """A duration as people say it: ``50 s``, ``6 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TimeLeft(logging.Handler):
    """Logs a line with the time left whenever Snakemake logs its progress. What ``--quiet`` hides is hidden here too.

    Add it to Snakemake's logger when the run starts.

    Args:
        dag: Snakemake's graph of jobs.
        logger: Snakemake's logger.
        cores: how many CPU cores the run may use.
        gpus: how many jobs may use a GPU at once; ``None`` if jobs compute on the CPU.
        threads: CPU threads of a job that computes. Those are the jobs of the rules with the resource ``gpu``.
    """

    def __init__(self, dag: Any, logger: logging.Logger, cores: int, gpus: int | None = None, threads: int = 1) -> None:
        super().__init__()
        self.dag, self.logger, self.cores, self.gpus, self.threads = dag, logger, cores, gpus, threads
        self.jobs = {dag.jobid(job): job for job in dag.needrun_jobs()}
        self.began, self.started, self.finished = time.monotonic(), dict[int, float](), set[int]()
        # By kind of job, from the most specific kind to the rule: the seconds of each job, by its file.
        self.seconds: dict[Hashable, dict[str, float]] = defaultdict(dict)
        for job in dag.jobs:
            self._learn(job)

    def emit(self, record: logging.LogRecord) -> None:
        """Take notice of an event of the workflow."""
        try:
            event = getattr(record, "event", None)
            if event == "job_info":
                self.started[record.jobid] = time.monotonic()  # type: ignore[attr-defined]
            elif event == "job_finished":
                self.finished.add(record.job_id)  # type: ignore[attr-defined]
                self._learn(self.jobs[record.job_id])  # type: ignore[attr-defined]
            elif event == "progress" and (line := self.line(record.done, record.total)):  # type: ignore[attr-defined]
                self.logger.info(line)
        except Exception:
            # An estimate must not stop a run.
            self.handleError(record)

    def line(self, done: int, total: int) -> str:
        """The line to log, or an empty one if there is nothing left, or nothing to estimate it from."""
        left, complete = self.seconds_left()
        if left is None:
            return ""
        so_far = in_words(time.monotonic() - self.began)
        about = "about" if complete else "at least"
        return f"ibsgl: {done} of {total} jobs, {so_far} so far, {about} {in_words(left)} left"

    def seconds_left(self) -> tuple[float | None, bool]:
        """Seconds until the last job ends, and whether every job has an estimate. ``None`` if no job has one."""
        waiting = [job for number, job in self.jobs.items() if number not in self.finished and job.benchmark]
        expected = {job: self._expected(job) for job in waiting}
        known = {job: seconds for job, seconds in expected.items() if seconds is not None}
        if not known:
            return None, False
        chains: dict[Any, float] = {}

        def chain(job: Any) -> float:
            """Seconds of the longest chain of jobs that ends with ``job``."""
            if job not in chains:
                before = max((chain(other) for other in self.dag.job_dependencies(job)), default=0.0)
                chains[job] = known.get(job, 0.0) + before
            return chains[job]

        computing = {job: seconds for job, seconds in known.items() if "gpu" in job.rule.resources}
        threads = min(self.threads, self.cores)
        work = sum(seconds * (threads if job in computing else 1) for job, seconds in known.items()) / self.cores
        on_gpu = sum(computing.values()) / self.gpus if self.gpus else 0.0
        return max(work, on_gpu, *(chain(job) for job in known)), len(known) == len(waiting)

    def _expected(self, job: Any) -> float | None:
        """The seconds that ``job`` will still take."""
        for kind in _kinds(job):
            if measured := self.seconds.get(kind):
                started = self.started.get(self.dag.jobid(job))
                running = 0.0 if started is None else time.monotonic() - started
                return max(0.0, fmean(measured.values()) - running)
        return None

    def _learn(self, job: Any) -> None:
        if job.benchmark and (seconds := job_seconds(job.benchmark)) is not None:
            for kind in _kinds(job):
                self.seconds[kind][job.benchmark] = seconds


def _kinds(job: Any) -> Iterator[Hashable]:
    """The job itself, the jobs that differ from it in a replicate or shard, and those of its rule."""
    yield job.benchmark
    yield (job.rule.name, *(value for name, value in sorted(job.wildcards_dict.items()) if name not in _ALIKE))
    yield job.rule.name
