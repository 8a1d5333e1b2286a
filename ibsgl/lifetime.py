"""A job ends with the run that started it, even if that was killed: nobody waits for its result any more."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from ibsgl.files import discard_unfinished

# The number of the process of the run, for its jobs on the same machine. The workflow sets it.
VARIABLE = "IBSGL_RUN"
# Seconds that the main thread has to end the process itself.
GRACE = 2.0


def end_with_run() -> None:
    """End this process as soon as the run named in the environment has ended. Only Linux can wait for a process like this."""
    number = os.environ.get(VARIABLE, "")
    if not number.isdecimal() or not hasattr(os, "pidfd_open"):
        return
    try:
        run = os.pidfd_open(int(number))
    except ProcessLookupError:
        _say(f"the run that started this job has ended ({VARIABLE}={number})")
        _end()
    except (OSError, OverflowError):
        return

    end_with(run, "the run that started this job was killed")


def end_with(file: int, reason: str) -> None:
    """End this process as soon as the file with this number can be read: a process has ended, or a connection was closed.

    It is called in the main thread.
    """

    def wait() -> None:
        select.select([file], [], [])
        _say(reason)
        # The main thread must not go on: it would open a file again that was just deleted.
        os.kill(os.getpid(), signal.SIGUSR1)
        # Python calls no handler during a call into a library, such as a compiler's.
        time.sleep(GRACE)
        _end()

    signal.signal(signal.SIGUSR1, lambda *_: _end())
    threading.Thread(target=wait, daemon=True).start()


def _say(reason: str) -> None:
    # The process ends too if the disk of the log is full, or the log is closed.
    with suppress(OSError, ValueError):
        print(f"ibsgl: {reason}, so the job ends", file=sys.stderr, flush=True)


def _end() -> NoReturn:
    """End the process at once. Whatever its other threads do is of no use."""
    discard_unfinished()
    os._exit(1)
