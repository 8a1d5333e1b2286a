"""Records on disk → MLflow: one run per record, nested under one run per invocation of the workflow.

A follower process logs new records while jobs run. What it could not log, because the tracking server was away or the
process was killed, stays in ``records/`` and is logged by the next one; a ledger per tracking URI says what is logged
already. MLflow is imported here only when there is something to log: it takes seconds.
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

from ibsgl import provenance

DEFAULT_URI = "sqlite:///mlflow.db"
POLL = 3.0  # seconds between two looks at the records
RETRY = 30.0  # seconds before a server that did not answer is asked again
PATIENCE = 60.0  # seconds without a record logged after which the workflow's end waits no longer
Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the store that ``mlflow ui`` opens by itself in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _shown(uri: str) -> str:
    return re.sub(r"(?<=//)[^/@]*@", "", uri)


def _store_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _ledger_file(directory: Path, uri: str) -> Path:
    return directory / ".logged" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"


def _ledger(directory: Path, uri: str) -> dict[str, str]:
    """Digest of each logged record → its run."""
    store, path = _store_file(uri), _ledger_file(directory, uri)
    # Somebody who removes the database starts over; the ledger is then about runs that are gone.
    if (store is not None and not store.exists()) or not path.exists():
        return {}
    return json.loads(path.read_text())


def pending_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records that :func:`tracking_uri` does not have yet, oldest first."""
    ledger = _ledger(Path(directory), tracking_uri())
    return [record for record in provenance.read_records(directory) if record["digest"] not in ledger]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _name(key: str, limit: int) -> str:
    """``key`` as MLflow takes it for the name of a param or a metric."""
    return re.sub(r"[^\w\-. /]", "_", key)[:limit]


class _Store:
    """A client and the experiment that it logs to; the only place that talks to MLflow."""

    def __init__(self, experiment: str) -> None:
        # MLflow's own 7 retries of 120 s would hold the workflow's end for minutes when the server is away.
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
        with self.alone():
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                try:
                    self.experiment_id = self.client.create_experiment(experiment)
                except MlflowException:
                    # Another client of the same server was faster.
                    found = self.client.get_experiment_by_name(experiment)
                    if found is None:
                        raise
            if found is not None:
                self.experiment_id = found.experiment_id

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The only process of this benchmark in an SQLite store: two that open a fresh one break its migrations."""
        file = _store_file(self.uri)
        if file is None:
            yield
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            yield

    def create(self, name: str, started: float, settings: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """A new running run with its params and tags; returns its id."""
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
        """One record as a finished run below ``parent``; earlier runs of its cell are tagged as superseded."""
        from mlflow.entities import Dataset, DatasetInput, Metric
        from mlflow.utils.validation import (
            MAX_DATASET_DIGEST_SIZE,
            MAX_ENTITY_KEY_LENGTH,
            MAX_METRICS_PER_BATCH,
        )

        facts = dict(record["tags"])
        tags = {"mlflow.parentRunId": parent, "ibsgl.cell": record["cell"], "ibsgl.kind": record["kind"]}
        run = self.create(record["cell"], record["started"], record["settings"], tags | _run_tags(facts))
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
            # A result that was since removed is no reason to lose the run.
            if artifact.exists():
                self.client.log_artifact(run, str(artifact), artifact.parent.name or None)
        self.client.set_terminated(run, "FINISHED", ended)
        self._supersede(record["cell"], run)
        return run

    def _supersede(self, cell: str, newest: str) -> None:
        same = self.client.search_runs([self.experiment_id], f"tags.`ibsgl.cell` = '{cell}'")
        for run in same:
            if run.info.run_id == newest or run.data.tags.get("ibsgl.superseded"):
                continue
            self.client.set_tag(run.info.run_id, "ibsgl.superseded", "true")
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")


def _run_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`ibsgl.provenance.collect` found out, under MLflow's names where it has one."""
    facts = dict(facts)
    tags = {"mlflow.source.name": "ibsgl", "mlflow.source.type": "PROJECT"}
    commit = facts.pop("commit", "unknown")
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    tags["git.dirty"] = str(facts.pop("dirty", True)).lower()
    tags |= {f"version.{package}": str(version) for package, version in facts.pop("versions", {}).items()}
    return tags | {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def log_records(directory: str | os.PathLike[str], experiment: str, parent: Callable[[], str]) -> int:
    """Log every record that the tracking URI does not have yet, each as a run of its own.

    Several processes may do so at once: a record is logged by one of them. A process that is killed between a run's end
    and its entry in the ledger leaves a run that the next one repeats and supersedes.

    Args:
        directory: the records of one config.
        experiment: the config's name.
        parent: gives the id of the run to nest under; called only if there is a record to log.

    Returns:
        How many were logged.

    Raises:
        Exception: whatever MLflow raises when the store does not take a record. Those logged before it stay logged.
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
            with store.alone():
                ledger[record["digest"]] = store.log(record, run)
            provenance.write_json(ledger_file, ledger)
            logged += 1
    return logged


def _reason(error: Exception) -> str:
    """One line for the user; the whole of it goes to the log."""
    traceback.print_exception(error)
    text = _shown(" ".join(str(error).split()))
    return "no answer" if text.startswith("API request to") and "failed with exception" in text else text[:200]


@dataclass
class _Invocation:
    """One call of the workflow: the parent run, made when the first record comes, and what became of it."""

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
            with store.alone():
                title = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
                self.run = store.create(title, self.started, self.settings, tags)
                if self.settings:
                    store.client.log_dict(self.run, dict(self.settings), "config.yaml")
        return self.run

    def log(self) -> bool:
        """Log what is new; False when the store did not take it, and then ``error`` says why in one line."""
        before = len(pending_records(self.directory))
        self.error = None
        try:
            if before:
                log_records(self.directory, self.name, self.parent)
        except Exception as error:
            # Whatever a store or server does wrong, the records stay and the workflow goes on.
            self.error = _reason(error)
        self.logged += before - len(pending_records(self.directory))
        return self.error is None

    def close(self, status: Status) -> None:
        """End the parent run."""
        if self.run is None:
            return
        try:
            store = _Store(self.name)
            with store.alone():
                store.client.set_terminated(self.run, status)
        except Exception as error:
            self.error = _reason(error)

    def outcome(self) -> dict[str, Any]:
        """What :func:`_message` needs."""
        return {"logged": self.logged, "pending": len(pending_records(self.directory)), "error": self.error}


def _message(directory: Path, outcome: Mapping[str, Any]) -> str | None:
    """The one line that a user reads; None when there was nothing to log."""
    uri, shown = tracking_uri(), _shown(tracking_uri())
    logged, kept = outcome["logged"], outcome["pending"]
    if outcome["error"] is not None:
        server = f"the tracking server at {shown}" if uri.startswith("http") else shown
        problem = "did not answer" if outcome["error"] == "no answer" else f"failed ({outcome['error']})"
        return (
            f"MLflow: {server} {problem}; {kept} record{'s are' if kept != 1 else ' is'} kept in {directory} "
            "and will be logged at the next run"
        )
    if not logged:
        return None
    if uri.startswith("http"):
        see = "see them there"
    else:
        see = "see them with: mlflow ui" + ("" if uri == DEFAULT_URI else f" --backend-store-uri {shown}")
    return f"MLflow: {logged} run{'s' if logged != 1 else ''} logged to {shown}; {see}"


class Tracker:
    """The follower process of one call of the workflow.

    Records are those of ``name``, in ``directory``; ``settings`` is the resolved config and becomes the parent run's
    params and its artifact ``config.yaml``; ``targets`` is what was asked for.
    """

    def __init__(
        self, name: str, directory: str | os.PathLike[str], settings: Mapping[str, Any], targets: str = ""
    ) -> None:
        self.name, self.directory, self.settings, self.targets = name, Path(directory), settings, targets
        self._process: subprocess.Popen | None = None
        self._started = False

    def start(self) -> None:
        """Start the follower, which writes to ``logs/mlflow.log`` and outlives Ctrl-C for its last look."""
        log = self.directory.parent / "logs" / "mlflow.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._started = True
        what = json.dumps({"settings": self.settings, "targets": self.targets})
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ibsgl.tracking", self.name, str(self.directory), what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def finish(self, status: Status) -> None:
        """Tell the follower how the workflow ended, wait until it has logged the rest, and print what became of it.

        A store may keep a client waiting for minutes (MLflow asks an unreachable database eleven times): a follower that
        logs nothing for ``PATIENCE`` seconds is stopped, and the records stay for the next run.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        pending, answer = len(pending_records(self.directory)), None
        while answer is None:
            try:
                answer, _ = process.communicate(status.encode(), timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                left = len(pending_records(self.directory))
                if left == pending:
                    process.kill()
                    answer = json.dumps({"logged": 0, "pending": left, "error": "no answer"}).encode()
                pending = left
            except KeyboardInterrupt:
                print("MLflow: the last records are being logged in the background", file=sys.stderr)
                raise
        try:
            outcome = json.loads(answer)
        except json.JSONDecodeError:
            log = self.directory.parent / "logs" / "mlflow.log"
            print(f"MLflow: the logging process ended early, see {log}; the records are kept", file=sys.stderr)
            return
        if message := _message(self.directory, outcome):
            print(message, file=sys.stderr)

    def close(self) -> None:
        """For the end of the process, when Snakemake may have called no handler.

        A follower that nobody finished (the workflow was interrupted) ends as FAILED; if none was started (nothing was
        to be done), one logs what an earlier call had to leave.
        """
        if self._started:
            self.finish("FAILED")
        elif pending_records(self.directory):
            self.start()
            self.finish("FINISHED")


def flush(name: str, directory: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Log by hand what is not logged yet, as an invocation of its own, and print what became of it."""
    if not pending_records(directory):
        print(f"MLflow: nothing new for {_shown(tracking_uri())} in {directory}", file=sys.stderr)
        return
    tracker = Tracker(name, directory, settings, targets="track")
    tracker.start()
    tracker.finish("FINISHED")


def _follow(invocation: _Invocation) -> dict[str, Any]:
    """Log new records until standard input says how the workflow ended, or closes because its process is gone."""
    asked = 0.0
    while not select.select([0], [], [], POLL)[0]:
        if time.monotonic() >= asked:
            asked = time.monotonic() + (0 if invocation.log() else RETRY)
    word = os.read(0, 64).decode()
    invocation.log()
    invocation.close(word if word in ("FINISHED", "FAILED") else "KILLED")
    return invocation.outcome()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ibsgl.tracking", description="Follow the records of one workflow.")
    parser.add_argument("name", help="the config's name, which is the experiment's")
    parser.add_argument("directory", type=Path, help="the folder of the records")
    parser.add_argument("what", type=json.loads, help="settings and targets of the workflow, as JSON")
    given = parser.parse_args()
    # MLflow prints the address of each run; standard output is for the outcome alone.
    with redirect_stdout(sys.stderr):
        outcome = _follow(_Invocation(given.name, given.directory, **given.what))
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main()
