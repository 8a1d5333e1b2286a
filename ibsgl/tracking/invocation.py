"""One call of the workflow: its parent run, and the records that are logged below it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ibsgl import files, provenance, summary
from ibsgl.redaction import redacted
from ibsgl.tracking.ledger import ledger_file, pending_records, read_ledger, tracking_uri
from ibsgl.tracking.store import Store, run_tags

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class Invocation:
    """One call of the workflow: its parent run, which is created with the first record, and its outcome.

    Args:
        name: the config's name, which is that of the experiment.
        directory: the folder with the records.
        settings: the resolved config.
        targets: the targets of this call.
    """

    name: str
    directory: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    targets: str = ""
    started: float = field(default_factory=time.time)
    run: str | None = None
    logged: int = 0
    error: str | None = None
    warning: str | None = None
    _store: Store | None = None

    def log(self) -> bool:
        """Log the new records. Returns False if this failed; ``error`` is then the reason in one line."""
        self.error = None
        try:
            if pending_records(self.directory):
                self._log_pending()
        except Exception as error:
            # If a store or server fails, the records stay and the workflow continues.
            self.error = _reason(error)
        return self.error is None

    def _log_pending(self) -> None:
        """Log each record that is not logged to the tracking URI yet, as a run of its own.

        Several processes may do this at once. Each record is logged by one of them. If a process is killed after a run ends and
        before the ledger is written, the next process logs the record again, and the new run supersedes the first.
        """
        ledger_path = ledger_file(self.directory, tracking_uri())
        ledger_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(ledger_path.with_suffix(".lock")):
            pending = pending_records(self.directory)
            if not pending:
                return
            ledger = read_ledger(self.directory, tracking_uri())
            if not ledger:
                # It may be that of a removed database, for which the new one must not be taken if this process is killed.
                ledger_path.unlink(missing_ok=True)
            store = self.store()
            parent = self.parent()
            for record in pending:
                with store.locked():
                    ledger[record["digest"]] = store.log(record, parent)
                files.write_json(ledger_path, ledger)
                self.logged += 1

    def store(self) -> Store:
        """The store, which is opened at the first call."""
        if self._store is None:
            # Only a data set in VOC layout can be any data set. Its config's name says which.
            source = self.settings.get("data", {}).get("source", "voc")
            self._store = Store(self.name, self.name if source == "voc" else source)
        return self._store

    def parent(self) -> str:
        """The id of the parent run, which is created at the first call."""
        if self.run is None:
            store = self.store()
            tags = run_tags(provenance.collect("cpu")) | {"kind": "invocation", "ibsgl.targets": self.targets}
            with store.locked():
                title = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
                self.run = store.create(title, self.started, self.settings, tags)
                if self.settings:
                    store.client.log_dict(self.run, dict(self.settings), "config.yaml")
        return self.run

    def close(self, status: Status) -> None:
        """Log what the whole run found, and end the parent run."""
        if self.run is None:
            return
        try:
            store = self.store()
            if self.error is None:
                self._summarise(store, self.run)
            with store.locked():
                store.client.set_terminated(self.run, status)
        except Exception as error:
            self.error = _reason(error)

    def _summarise(self, store: Store, run: str) -> None:
        """Give the parent run the data set, the headline values, the answer as its note, and the page of the whole run.

        They are made from all records on disk: an earlier call may have made some of the tables. The records themselves are
        logged already. So if this fails, ``warning`` is the reason, and nothing else is lost.
        """
        try:
            records = provenance.read_records(self.directory)
            found = summary.results(self.settings, records)
            digests = [record["tags"]["data_digest"] for record in records if record["tags"].get("data_digest")]
            with store.locked():
                if digests:
                    store.log_data(run, digests[-1], "training, evaluation")
                values = [(name, value, 0) for name, value in summary.headline(found).items()]
                store.log_metrics(run, values, time.time())
                store.log_summary(run, partial(summary.note, found), summary.page(self.name, found))
        except Exception as error:
            self.warning = _reason(error)

    def outcome(self) -> dict[str, Any]:
        """The values that the workflow's process needs for its message."""
        return {
            "logged": self.logged,
            "pending": len(pending_records(self.directory)),
            "error": self.error,
            "warning": self.warning,
            "experiment": self._store.experiment_id if self._store else None,
        }


def _reason(error: Exception) -> str:
    """One line for the user. The traceback is printed to the log."""
    traceback.print_exception(error)
    text = redacted(" ".join(str(error).split()))
    return "no answer" if text.startswith("API request to") and "failed with exception" in text else text[:200]
