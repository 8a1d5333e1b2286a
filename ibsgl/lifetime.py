"""A job ends with the run that started it, even if that was killed: nobody waits for its result any more."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import NoReturn

from ibsgl.files import discard_unfinished

# The number of the process of the run, for its jobs on the same machine. The workflow sets it.
VARIABLE = "IBSGL_RUN"


def end_with_run() -> None:
    """End this process as soon as the run named in the environment has ended. Only Linux can wait for a process like this."""
    number = os.environ.get(VARIABLE, "")
    if not number.isdecimal() or not hasattr(os, "pidfd_open"):
        return
    try:
        run = os.pidfd_open(int(number))
    except ProcessLookupError:
        _end(f"the run that started this job has ended ({VARIABLE}={number})")
    except (OSError, OverflowError):
        return

    end_with(run, "the run that started this job was killed")


def end_with(file: int, reason: str) -> None:
    """End this process as soon as the file with this number can be read: a process has ended, or a connection was closed."""

    def wait() -> None:
        select.select([file], [], [])
        _end(reason)

    threading.Thread(target=wait, daemon=True).start()


def _end(reason: str) -> NoReturn:
    """End the process at once. Whatever its other threads do is of no use."""
    print(f"ibsgl: {reason}, so the job ends", file=sys.stderr, flush=True)
    discard_unfinished()
    os._exit(1)
