"""SLURM jobs outlive a Snakemake that was killed: they are cancelled before a new one sends the same steps again."""

from __future__ import annotations

import os
import re
import subprocess
import time

# How Snakemake names the jobs of one call: slurm-jobname-prefix in profiles/slurm, and a UUID.
_NAME = re.compile(r"ibsgl_[0-9a-f-]{36}")


def _leftovers() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%A|%j|%Z"], capture_output=True, text=True, check=True
    ).stdout
    jobs = (line.split("|", 2) for line in listed.splitlines())
    return [job for job, name, folder in jobs if _NAME.fullmatch(name) and os.path.realpath(folder) == os.getcwd()]


def cancel_leftovers(patience: float = 300.0) -> list[str]:
    """Cancel this user's workflow jobs of the working directory and wait until they are gone.

    A job that is being cancelled removes its output, so nothing may be written before it is gone.

    Args:
        patience: seconds until giving up.

    Returns:
        The ids of the cancelled jobs.

    Raises:
        TimeoutError: some are still there.
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
