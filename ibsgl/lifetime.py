"""A job ends with the run that started it, even if that was killed: nobody waits for its result any more."""

from __future__ import annotations

import os
import select
import threading

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
        os._exit(1)
    except OSError:
        return

    def wait() -> None:
        select.select([run], [], [])
        # Nothing is cleaned up: the work of the job's other threads is of no use.
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
