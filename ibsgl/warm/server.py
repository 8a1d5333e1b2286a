"""The process that starts the jobs of a run. :func:`start` starts it.

Only Linux has what it needs: it waits for other processes by pidfd, and its socket has a name but no file.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from ibsgl import lifetime
from ibsgl.warm import OFF, REFUSED, VARIABLE
from ibsgl.warm.client import owner

# Snakemake sets them for each job. The libraries read them once, when they are loaded.
THREADS = (
    *("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)
# Variables that may differ between the server and a job. A job gets its own, and no import reads them.
_FREE = frozenset({VARIABLE, "_", "SHLVL", "PWD", "OLDPWD", "TMPDIR", "TMP", "TEMPDIR", "TEMP"})
# The thread of Arrow's allocator, jemalloc, which stops it before each copy is made, and then continues it.
_SAFE = frozenset({"jemalloc_bg_thd"})
# The server's process, in the process of the run.
_process: subprocess.Popen[bytes] | None = None


def start() -> None:
    """Start the server of this run, for jobs of one thread. It ends with the process that ``IBSGL_RUN`` names."""
    if os.environ.get(VARIABLE) == OFF or not hasattr(os, "pidfd_open"):
        return
    global _process
    name = f"ibsgl-{secrets.token_hex(8)}"
    _process = subprocess.Popen(
        # -P: as for the command, the folder of the run is no place of modules.
        [sys.executable, "-P", "-c", "from ibsgl.warm.server import main; main()", name],
        env=os.environ | dict.fromkeys(THREADS, "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    # Jobs that begin before the server is ready find no socket, and start by themselves.
    os.environ[VARIABLE] = name


def wait_until_ready() -> bool:
    """Whether there is a server, as soon as it can start jobs."""
    while _process is not None and _process.poll() is None:
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex("\0" + os.environ[VARIABLE]) == 0:
                return True
        time.sleep(0.02)
    return False


def measured(timer: type[Any]) -> None:
    """Make Snakemake's ``BenchmarkTimer`` measure the copy that runs a job, which is no child of the job's command."""
    import psutil

    class Job(psutil.Process):
        def children(self, recursive: bool = False) -> list[psutil.Process]:
            found = super().children(recursive)
            names = {_name(process.pid) for process in (self, *found)}
            for copy in psutil.Process(_process.pid).children() if _process and _process.poll() is None else ():
                with suppress(psutil.NoSuchProcess):
                    found += [copy] if copy.name() in names else []
            return found

    begin = timer.__init__

    def begin_with_copies(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self.main = Job(self.main.pid)

    timer.__init__ = begin_with_copies


def prepare() -> None:
    """Import what jobs import. It must start no thread and use no GPU: a copy of this process would have neither."""
    import torch

    from ibsgl import cli, provenance  # noqa: F401
    from ibsgl.config.steps import STEPS

    for module in sorted({module for step in STEPS.values() for module in step.entry}):
        import_module(module)
    # Copies run this code, also if a later commit changes the files.
    provenance.own_commit()
    # The first use of an optimiser imports torch's compiler.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()


def threads() -> set[str]:
    """The names of all threads of this process but the first, those of libraries too."""
    first = str(os.getpid())
    return {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir() if task.name != first}


def serve(name: str, run: int, environment: Mapping[str, str]) -> NoReturn:
    """Start a copy of this process for each request, until the run ends.

    Args:
        name: of the socket.
        run: pidfd of the run's process.
        environment: what this process was started with. A job with another one is refused.
    """
    # Windows has none.
    from multiprocessing.context import ForkProcess

    own = os.pidfd_open(os.getpid())
    jobs: dict[int, tuple[ForkProcess, socket.socket]] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen(128)
        while True:
            ready = wait([run, listener, *jobs])
            if run in ready:
                # The copies end by themselves. Python would take more than a second to take its modules apart.
                os._exit(0)
            for ended in jobs.keys() & set(ready):
                job, connection = jobs.pop(ended)
                job.join()
                _answer(connection, b"%d\n" % (job.exitcode or 0))
            if listener in ready:
                connection = listener.accept()[0]
                request, files = _read(connection, environment)
                job = ForkProcess(target=_run, args=(request, files, connection, own))
                try:
                    if not request:
                        raise OSError
                    job.start()
                    jobs[job.sentinel] = job, connection
                except OSError:
                    _answer(connection, REFUSED)
                for file in files:
                    os.close(file)


def _answer(connection: socket.socket, answer: bytes) -> None:
    # The command may have been killed.
    with connection, suppress(OSError):
        connection.sendall(answer)


def _read(connection: socket.socket, environment: Mapping[str, str]) -> tuple[dict[str, Any], list[int]]:
    """The request, and the command's standard output and error; an empty request if the job must start by itself."""
    files: list[int] = []
    try:
        connection.settimeout(5)
        if owner(connection) != os.getuid():
            return {}, files
        size, files, _, _ = socket.recv_fds(connection, 8, 2)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(size, "big")))
        connection.settimeout(None)
        same = request["executable"] == sys.executable and _fixed(request["environment"]) == environment
    except (OSError, ValueError, MemoryError, LookupError, TypeError, AttributeError):
        # Not what this version's client sends.
        return {}, files
    return request if same else {}, files


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _FREE}


def _name(command: int) -> str:
    """What a list of processes shows as the name of the copy that runs a command: 15 letters at most."""
    return f"ibsgl-{command}"


def _run(request: dict[str, Any], files: list[int], connection: socket.socket, server: int) -> None:
    """Run the command of ``request`` in this process, a copy of the server."""
    from ibsgl import cli

    lifetime.end_with(server, "the process that started this job was killed")
    lifetime.end_with(connection.fileno(), "the command of this job was killed")
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("/proc/self/comm").write_text(_name(request["process"]))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv[:] = request["arguments"]
    cli.main()


def main() -> None:
    """The process that :func:`start` starts."""
    # Ctrl-C reaches every process of the terminal. The jobs end by it, and this process with the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = os.pidfd_open(int(os.environ[lifetime.VARIABLE]))
    except OSError:
        # It has ended already, or the system is too old.
        return
    # Imports may add to it.
    environment = _fixed(os.environ)
    prepare()
    # A copy would have no other threads.
    if not threads() - _SAFE:
        serve(sys.argv[1], run, environment)
