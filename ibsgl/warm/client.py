"""The command ``ibsgl``. It imports nothing that takes time until it is known that no server starts the job."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from ibsgl.warm import OFF, REFUSED, VARIABLE


def main() -> None:
    """The console script."""
    name = os.environ.get(VARIABLE, OFF)
    status = None if name == OFF else ask(name)
    if status is None:
        from ibsgl.cli import main as run

        return run()
    if status < 0:
        # The job was killed by a signal. Whoever waits for this process must see the same.
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def ask(name: str) -> int | None:
    """The exit status of this command in a copy of the server ``name``; negative: the signal that has killed it.

    ``None``: there is no such server, or it has refused. Then nothing has run.
    """
    request = {
        "process": os.getpid(),
        "executable": sys.executable,
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "environment": {**os.environ},
    }
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect("\0" + name)
            if owner(connection) != os.getuid():
                return None
            socket.send_fds(connection, [len(content).to_bytes(8, "big")], [1, 2])
        except OSError:
            return None
        try:
            connection.sendall(content)
            answer = connection.recv(64)
        except OSError:
            answer = b""
        except KeyboardInterrupt:
            # The job ends when this connection does.
            sys.exit(130)
    if not answer:
        sys.exit("ibsgl: error: the process that starts the jobs of this run has ended, so the job ends; run again")
    return None if answer == REFUSED else int(answer)


def owner(connection: socket.socket) -> int:
    """The user of the process at the other end. Everybody on this machine can open such a socket."""
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
