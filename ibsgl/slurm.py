"""If Snakemake is killed, its SLURM jobs go on. They are cancelled before a new call submits the same steps again."""

from __future__ import annotations

import os
import re
import subprocess
import time

# The names that Snakemake gives to the jobs of one call: slurm-jobname-prefix of profiles/slurm, and a UUID.
_NAME = re.compile(r"ibsgl_[0-9a-f-]{36}")


def _leftovers() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%A|%j|%Z"], capture_output=True, text=True, check=True
    ).stdout
    jobs = (line.split("|", 2) for line in listed.splitlines())
    return [job for job, name, folder in jobs if _NAME.fullmatch(name) and os.path.realpath(folder) == os.getcwd()]


def cancel_leftovers(patience: float = 300.0) -> list[str]:
    """Cancel this user's workflow jobs in the working directory and wait until they have ended.

    A job that is being cancelled removes its output. So no step may write before all jobs have ended.

    Args:
        patience: seconds to wait.

    Returns:
        The ids of the cancelled jobs.

    Raises:
        TimeoutError: some jobs have not ended.
    """
    jobs = _leftovers()
    if jobs:
        subprocess.run(["scancel", *jobs], check=True)
    deadline = time.monotonic() + patience
    while left := _leftovers():
        if time.monotonic() > deadline:
            raise TimeoutError(f"SLURM jobs of an earlier run do not end: {' '.join(left)}; see `squeue --me`")
        time.sleep(1)
    return jobs
