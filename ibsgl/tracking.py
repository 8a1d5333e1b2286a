"""Records on disk → MLflow: one run per record, nested under one run per invocation of the workflow.

A separate process, the follower, logs new records while jobs run. If the tracking server cannot be reached or the follower is
killed, records stay in ``records/``, and the next follower logs them. For each tracking URI a ledger lists the records that
are logged already. MLflow is imported only if there is something to log, because its import takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ibsgl import files, provenance

DEFAULT_URI = "sqlite:///mlflow.db"
# Seconds between two reads of the records.
POLL = 3.0
# Seconds before a server that did not answer is tried again.
RETRY = 30.0
# If no record is logged for so many seconds, the end of the workflow no longer waits.
PATIENCE = 60.0
Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the store that ``mlflow ui`` opens by default in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def without_password(text: str) -> str:
    """``text`` without the user names and passwords of its URIs."""
    return re.sub(r"(?<=//)[^/@]*@", "", text)


def store_file(uri: str) -> Path | None:
    """The file of an SQLite store, or ``None`` if ``uri`` is something else."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _ledger_file(directory: Path, uri: str) -> Path:
    return directory / ".logged" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"


def _ledger(directory: Path, uri: str) -> dict[str, str]:
    """Digest of each logged record → its run."""
    store, path = store_file(uri), _ledger_file(directory, uri)
    # If the database was removed, the runs in the ledger no longer exist.
    if (store is not None and not store.exists()) or not path.exists():
        return {}
    return json.loads(path.read_text())


def pending_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records that are not logged to :func:`tracking_uri` yet, oldest first."""
    ledger = _ledger(Path(directory), tracking_uri())
    return [record for record in provenance.read_records(directory) if record["digest"] not in ledger]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _name(key: str, limit: int) -> str:
    """``key`` as a valid name of a param or a metric in MLflow."""
    return re.sub(r"[^\w\-. /]", "_", key)[:limit]


class _Store:
    """A client of MLflow and the experiment that it logs to. Only this class uses MLflow."""

    def __init__(self, experiment: str) -> None:
        # With MLflow's default of 7 retries of 120 s, the workflow would not end for minutes if the server is not reached.
        for key, value in (
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ):
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri = tracking_uri()
        self.name = experiment
        with self.locked():
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                try:
                    self.experiment_id = self.client.create_experiment(experiment)
                except MlflowException:
                    # Another client of the same server has created it meanwhile.
                    found = self.client.get_experiment_by_name(experiment)
                    if found is None:
                        raise
            if found is not None:
                self.experiment_id = found.experiment_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock an SQLite store. If two processes open a new store at once, they break its migrations."""
        file = store_file(self.uri)
        if file is None:
            yield
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            yield

    def create(self, name: str, started: float, settings: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Start a run with its params and tags; returns its id."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import (
            MAX_ENTITY_KEY_LENGTH,
            MAX_PARAM_VAL_LENGTH,
            MAX_PARAMS_TAGS_PER_BATCH,
            MAX_TAG_VAL_LENGTH,
        )

        run = self.client.create_run(self.experiment_id, start_time=int(1000 * started), run_name=name)
        kept = [RunTag(key, str(value)[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
        self.client.log_batch(run.info.run_id, tags=kept)
        params = [
            Param(_name(key, MAX_ENTITY_KEY_LENGTH), value[:MAX_PARAM_VAL_LENGTH]) for key, value in _flat(settings)
        ]
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])
        return run.info.run_id

    def log(self, record: Mapping[str, Any], parent: str) -> str:
        """Log one record as a finished run below ``parent``; earlier runs of the same result are tagged as superseded."""
        from mlflow.entities import Dataset, DatasetInput, Metric
        from mlflow.utils.validation import (
            MAX_DATASET_DIGEST_SIZE,
            MAX_ENTITY_KEY_LENGTH,
            MAX_METRICS_PER_BATCH,
        )

        facts = dict(record["tags"])
        tags = {"mlflow.parentRunId": parent, "ibsgl.result_id": record["result_id"], "ibsgl.kind": record["kind"]}
        run = self.create(record["result_id"], record["started"], record["settings"], tags | _run_tags(facts))
        ended = int(1000 * (record["started"] + record["seconds"]))
        steps = [int(row["epoch"]) for row in record["history"]]
        metrics = [
            Metric(_name(key, MAX_ENTITY_KEY_LENGTH), value, ended, step)
            for step, row in zip(steps, record["history"], strict=True)
            for key, value in row.items()
            if key != "epoch"
        ]
        metrics += [
            Metric(_name(key, MAX_ENTITY_KEY_LENGTH), value, ended, max(steps, default=0))
            for key, value in record["metrics"].items()
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        if digest := facts.get("data_digest"):
            source = json.dumps({"tags": {"digest": digest}})
            data = Dataset(self.name, digest[:MAX_DATASET_DIGEST_SIZE], source_type="code", source=source)
            self.client.log_inputs(run, [DatasetInput(data)])
        for artifact in map(Path, record["artifacts"]):
            # The run is logged also if the result's file was removed.
            if artifact.exists():
                self.client.log_artifact(run, str(artifact), artifact.parent.name or None)
        self.client.set_terminated(run, "FINISHED", ended)
        self._supersede(record["result_id"], run)
        return run

    def _supersede(self, result_id: str, newest: str) -> None:
        same = self.client.search_runs([self.experiment_id], f"tags.`ibsgl.result_id` = '{result_id}'")
        for run in same:
            if run.info.run_id == newest or run.data.tags.get("ibsgl.superseded"):
                continue
            self.client.set_tag(run.info.run_id, "ibsgl.superseded", "true")
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")


def _run_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts of :func:`ibsgl.provenance.collect` as tags, with MLflow's own names where there are some."""
    facts = dict(facts)
    tags = {"mlflow.source.name": "ibsgl", "mlflow.source.type": "PROJECT"}
    commit = facts.pop("commit", "unknown")
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    tags["git.dirty"] = str(facts.pop("dirty", True)).lower()
    tags |= {f"version.{package}": str(version) for package, version in facts.pop("versions", {}).items()}
    return tags | {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def log_records(directory: str | os.PathLike[str], experiment: str, parent: Callable[[], str]) -> int:
    """Log every record that is not logged to the tracking URI yet, each as a run of its own.

    Several processes may call this at once. Each record is logged by one of them. If a process is killed after a run ends and
    before the ledger is written, the next process logs the record again, and the new run supersedes the first.

    Args:
        directory: the folder with the records of one config.
        experiment: the config's name.
        parent: returns the id of the parent run. It is called only if there is a record to log.

    Returns:
        The number of records that were logged.

    Raises:
        Exception: any exception of MLflow, if a record cannot be logged. Records that were logged before stay logged.
    """
    directory = Path(directory)
    ledger_file = _ledger_file(directory, tracking_uri())
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    logged = 0
    with FileLock(ledger_file.with_suffix(".lock")):
        pending = pending_records(directory)
        if not pending:
            return 0
        ledger = _ledger(directory, tracking_uri())
        run = parent()
        store = _Store(experiment)
        for record in pending:
            with store.locked():
                ledger[record["digest"]] = store.log(record, run)
            files.write_json(ledger_file, ledger)
            logged += 1
    return logged


def _reason(error: Exception) -> str:
    """One line for the user. The traceback is printed to the log."""
    traceback.print_exception(error)
    text = without_password(" ".join(str(error).split()))
    return "no answer" if text.startswith("API request to") and "failed with exception" in text else text[:200]


@dataclass
class _Invocation:
    """One call of the workflow: its parent run, which is created with the first record, and its outcome."""

    name: str
    directory: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    targets: str = ""
    started: float = field(default_factory=time.time)
    run: str | None = None
    logged: int = 0
    error: str | None = None

    def parent(self) -> str:
        """The id of the parent run, which is created at the first call."""
        if self.run is None:
            store = _Store(self.name)
            tags = _run_tags(provenance.collect("cpu")) | {"ibsgl.kind": "invocation", "ibsgl.targets": self.targets}
            with store.locked():
                title = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
                self.run = store.create(title, self.started, self.settings, tags)
                if self.settings:
                    store.client.log_dict(self.run, dict(self.settings), "config.yaml")
        return self.run

    def log(self) -> bool:
        """Log the new records. Returns False if this failed; ``error`` is then the reason in one line."""
        before = len(pending_records(self.directory))
        self.error = None
        try:
            if before:
                log_records(self.directory, self.name, self.parent)
        except Exception as error:
            # If a store or server fails, the records stay and the workflow continues.
            self.error = _reason(error)
        self.logged += before - len(pending_records(self.directory))
        return self.error is None

    def close(self, status: Status) -> None:
        """End the parent run."""
        if self.run is None:
            return
        try:
            store = _Store(self.name)
            with store.locked():
                store.client.set_terminated(self.run, status)
        except Exception as error:
            self.error = _reason(error)

    def outcome(self) -> dict[str, Any]:
        """The values that :func:`_message` needs."""
        return {"logged": self.logged, "pending": len(pending_records(self.directory)), "error": self.error}


def _message(directory: Path, outcome: Mapping[str, Any]) -> str | None:
    """One line for the user; ``None`` if there was nothing to log."""
    uri, printed_uri = tracking_uri(), without_password(tracking_uri())
    logged, kept = outcome["logged"], outcome["pending"]
    if outcome["error"] is not None:
        server = f"the tracking server at {printed_uri}" if uri.startswith("http") else printed_uri
        problem = "did not answer" if outcome["error"] == "no answer" else f"failed ({outcome['error']})"
        return (
            f"MLflow: {server} {problem}; {kept} record{'s are' if kept != 1 else ' is'} kept in {directory} "
            "and will be logged at the next run"
        )
    if not logged:
        return None
    if uri.startswith("http"):
        hint = "see them there"
    else:
        hint = "see them with: mlflow ui" + ("" if uri == DEFAULT_URI else f" --backend-store-uri {printed_uri}")
    return f"MLflow: {logged} run{'s' if logged != 1 else ''} logged to {printed_uri}; {hint}"


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
        while output is None:
            try:
                output, _ = process.communicate(status.encode(), timeout=PATIENCE)
            except subprocess.TimeoutExpired:
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
        if message := _message(self.directory, outcome):
            print(message, file=sys.stderr)

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
        print(f"MLflow: nothing new for {without_password(tracking_uri())} in {directory}", file=sys.stderr)
        return
    tracker = Tracker(name, directory, settings, targets="track")
    tracker.start()
    tracker.finish("FINISHED")


def _follow(invocation: _Invocation) -> dict[str, Any]:
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


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ibsgl.tracking", description="Follow the records of one workflow.")
    parser.add_argument("name", help="name of the config and of the experiment")
    parser.add_argument("directory", type=Path, help="folder with the records")
    parser.add_argument("invocation", type=json.loads, help="settings and targets of the workflow, as JSON")
    arguments = parser.parse_args()
    # MLflow prints the address of each run. Standard output is for the outcome alone.
    with redirect_stdout(sys.stderr):
        outcome = _follow(_Invocation(arguments.name, arguments.directory, **arguments.invocation))
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main()
