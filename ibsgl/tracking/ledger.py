"""Where records are logged to, and which are logged already."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from ibsgl import provenance
from ibsgl.redaction import redacted

DEFAULT_URI = "sqlite:///mlflow.db"
# Where `mlflow ui` serves its pages if no port is given.
UI_ADDRESS = "http://127.0.0.1:5000"


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the store that ``mlflow ui`` opens by default in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def store_file(uri: str) -> Path | None:
    """The file of an SQLite store; ``None`` for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def where_to_look(experiment_id: str) -> str:
    """What to do to see the runs of an experiment. Without the path, the page would show traces, and there are none."""
    uri, printed_uri = tracking_uri(), redacted(tracking_uri())
    path = f"#/experiments/{experiment_id}/runs"
    if uri.startswith("http"):
        return f"{printed_uri.rstrip('/')}/{path}"
    store = "" if uri == DEFAULT_URI else f" --backend-store-uri {printed_uri}"
    return f"mlflow ui{store}, then {UI_ADDRESS}/{path}"


def ledger_file(directory: Path, uri: str) -> Path:
    """The ledger of the records in ``directory`` for one tracking URI."""
    return directory / ".logged" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"


def read_ledger(directory: Path, uri: str) -> dict[str, str]:
    """Digest of each logged record → its run."""
    store, path = store_file(uri), ledger_file(directory, uri)
    # If the database was removed, the runs in the ledger no longer exist.
    if (store is not None and not store.exists()) or not path.exists():
        return {}
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(ledger, dict):
            raise ValueError("it is no mapping")
    except ValueError as error:
        warnings.warn(f"{path} is damaged ({error}); all records are logged again", stacklevel=2)
        return {}
    return ledger


def pending_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records that are not logged to :func:`tracking_uri` yet, oldest first.

    The records of the alternatives of a sensitivity study are among them. They have the alternative's name under
    ``alternative``.
    """
    directory = Path(directory)
    ledger = read_ledger(directory, tracking_uri())
    records = provenance.read_records(directory)
    for folder in directory.parent.glob(f"alternatives/*/{directory.name}"):
        records += [record | {"alternative": folder.parent.name} for record in provenance.read_records(folder)]
    pending = [record for record in records if record["digest"] not in ledger]
    return sorted(pending, key=lambda record: record["started"])
