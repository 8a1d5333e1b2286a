"""The process that logs records while jobs run, and the message to the user at the end."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibsgl.redaction import redacted
from ibsgl.tracking.invocation import Invocation, Status
from ibsgl.tracking.ledger import pending_records, tracking_uri, where_to_look

# Seconds between two reads of the records.
POLL = 3.0
# Seconds before a server that did not answer is tried again.
RETRY = 30.0
# If no record is logged for so many seconds, the end of the workflow no longer waits.
PATIENCE = 60.0


def message(directory: Path, outcome: Mapping[str, Any]) -> str | None:
    """One line for the user; ``None`` if there was nothing to log."""
    uri, printed_uri = tracking_uri(), redacted(tracking_uri())
    logged, kept = outcome["logged"], outcome["pending"]
    if outcome["error"] is not None:
        server = f"the tracking server at {printed_uri}" if uri.startswith("http") else printed_uri
        problem = "did not answer" if outcome["error"] == "no answer" else f"failed ({outcome['error']})"
        if not kept:
            return f"MLflow: {server} {problem} at the end of the run; all records are logged"
        return (
            f"MLflow: {server} {problem}; {kept} record{'s are' if kept != 1 else ' is'} kept in {directory} "
            "and will be logged at the next run"
        )
    if not logged:
        return None
    runs = f"{logged} run{'s' if logged != 1 else ''}"
    return f"MLflow: {runs} logged to {printed_uri}; see them with: {where_to_look(outcome['experiment'])}"


class Tracker:
    """The follower process of one call of the workflow.

    Args:
        name: the config's name.
        directory: the folder with the records.
        settings: the resolved config. It becomes the params of the parent run and its artifact ``config.yaml``.
        targets: the targets of this call.
    """

    def __init__(
        self, name: str, directory: str | os.PathLike[str], settings: Mapping[str, Any], targets: str = ""
    ) -> None:
        self.name, self.directory, self.settings, self.targets = name, Path(directory), settings, targets
        self._process: subprocess.Popen | None = None
        self._started = False

    def start(self) -> None:
        """Start the follower. It writes to ``logs/mlflow.log``. Ctrl-C does not stop it, so that it logs the last records."""
        log = self.directory.parent / "logs" / "mlflow.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._started = True
        invocation = json.dumps({"settings": self.settings, "targets": self.targets})
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ibsgl.tracking", self.name, str(self.directory), invocation],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def finish(self, status: Status) -> None:
        """Send the workflow's status to the follower, wait until it has logged the rest, and print the outcome.

        A follower that logs nothing for ``PATIENCE`` seconds is stopped, and the records stay for the next run. Otherwise it
        could wait for minutes, because MLflow tries to reach a database eleven times.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        pending, output = len(pending_records(self.directory)), None
        word: bytes | None = status.encode()
        while output is None:
            try:
                output, _ = process.communicate(word, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                # Python has sent it, or will: it takes the input of the first call only.
                word = None
                left = len(pending_records(self.directory))
                if left == pending:
                    process.kill()
                    output = json.dumps({"logged": 0, "pending": left, "error": "no answer"}).encode()
                pending = left
            except KeyboardInterrupt:
                print("MLflow: the last records are being logged in the background", file=sys.stderr)
                raise
        try:
            outcome = json.loads(output)
        except json.JSONDecodeError:
            log = self.directory.parent / "logs" / "mlflow.log"
            print(f"MLflow: the logging process ended early, see {log}; the records are kept", file=sys.stderr)
            return
        if line := message(self.directory, outcome):
            print(line, file=sys.stderr)
        if warning := outcome.get("warning"):
            print(f"MLflow: the parent run has no complete summary ({warning})", file=sys.stderr)

    def close(self) -> None:
        """Log the remaining records at the end of the process, also if Snakemake has called no handler.

        If the workflow was interrupted, its follower is still running and ends as FAILED. If there was nothing to do, no
        follower was started; then one is started for records that an earlier call left.
        """
        if self._started:
            self.finish("FAILED")
        elif pending_records(self.directory):
            self.start()
            self.finish("FINISHED")


def flush(name: str, directory: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Log the records that are not logged yet, as an invocation of its own, and print the outcome."""
    if not pending_records(directory):
        print(f"MLflow: nothing new for {redacted(tracking_uri())} in {directory}", file=sys.stderr)
        return
    tracker = Tracker(name, directory, settings, targets="track")
    tracker.start()
    tracker.finish("FINISHED")


def follow(invocation: Invocation) -> dict[str, Any]:
    """Log new records until standard input gives the workflow's status, or closes because the workflow was killed."""
    statuses: dict[str, Status] = {"FINISHED": "FINISHED", "FAILED": "FAILED"}
    next_try = 0.0
    while not select.select([0], [], [], POLL)[0]:
        if time.monotonic() >= next_try:
            next_try = time.monotonic() + (0 if invocation.log() else RETRY)
    word = os.read(0, 64).decode()
    invocation.log()
    invocation.close(statuses.get(word, "KILLED"))
    return invocation.outcome()
