"""Where a result comes from: digests of files, facts about code and machine, and a record on disk per result.

A step of the workflow writes its record when it ends. :mod:`ibsgl.tracking` sends the records to MLflow later. So a step does
not wait for a tracking server, does not fail with it, and does not import MLflow, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ibsgl.files import write_json

PACKAGES = (
    "ibsgl",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-image",
    "pandas",
    "pyarrow",
    "snakemake",
    "mlflow",
)

RECORD = frozenset({"result_id", "kind", "settings", "metrics", "history", "artifacts", "tags", "started", "seconds"})


def collect(device: str, **extra: Any) -> dict[str, Any]:
    """The facts that are needed to reproduce a result.

    Args:
        device: the device of the step, as ``str(torch.device)``: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        extra: further facts, for example ``data_digest``.

    Returns:
        ``commit`` and ``dirty`` of the code's repository, ``device`` (the name of the processor or GPU), ``platform``,
        ``versions`` by package, and ``extra``. ``dirty`` is True if files are changed or untracked. Without a repository,
        ``commit`` is ``"unknown"`` and ``dirty`` is True. There are no paths.
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), **package_versions()}
    if device.startswith("cuda"):
        import torch

        versions["cuda"] = torch.version.cuda
        name = torch.cuda.get_device_name(device)
    else:
        name = processor()
    head, dirty = own_commit()
    facts = {"commit": head, "dirty": dirty, "device": name, "platform": platform.platform(), "versions": versions}
    return facts | extra


def package_versions() -> dict[str, str]:
    """The versions of those of :data:`PACKAGES` that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


@cache
def own_commit() -> tuple[str, bool]:
    """Commit and dirty flag of this code. It is asked for once: what a process has imported does not change."""
    return commit(Path(__file__).resolve())


def commit(file: Path) -> tuple[str, bool]:
    """Commit and dirty flag of the repository that tracks ``file``; see :func:`collect`."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        # Several steps run git at once, so none may take the lock of the index.
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--verify", "HEAD")
        # A package that is installed in an environment inside a repository is not code of that repository.
        if head.returncode or git("check-ignore", "--quiet", str(file)).returncode == 0:
            return "unknown", True
        status = git("status", "--porcelain")
    except OSError:
        return "unknown", True
    return head.stdout.strip(), bool(status.returncode or status.stdout.strip())


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: str | os.PathLike[str]) -> str:
    """16 hexadecimal digits that change when a file in ``folder``, at any depth, is added, removed, resized or written.

    Only names, sizes and dates are read. Tens of thousands of files take a fraction of a second.
    """
    digest = hashlib.sha256()
    for path, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            file = os.path.join(path, name)
            facts = os.stat(file)
            digest.update(f"{os.path.relpath(file, folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def write_record(
    directory: str | os.PathLike[str],
    result_id: str,
    kind: str,
    *,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    started: float,
    seconds: float,
    history: Iterable[Mapping[str, float]] = (),
    artifacts: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the record of one execution of a step. It replaces an earlier record with the same ``result_id``.

    Args:
        directory: the folder with the records of one config.
        result_id: the result, for example ``resnet/0/guided/rise`` or ``table3``.
        kind: ``training``, ``evaluation``, ``table`` or ``figure``.
        settings: the settings that the result depends on.
        metrics: final values by name.
        tags: the facts of :func:`collect`.
        started: when the step began, in seconds since 1970.
        seconds: how long the step took.
        history: one row per epoch. ``epoch`` is its number.
        artifacts: files that belong to the result, relative to the working directory.

    Returns:
        The record's path.

    Raises:
        ValueError: a row of ``history`` has no ``epoch``.
    """
    rows = [{key: float(value) for key, value in row.items()} for row in history]
    if any("epoch" not in row for row in rows):
        raise ValueError(f"{result_id}: every row of the history needs the number of its epoch under 'epoch'")
    record = {
        "result_id": result_id,
        "kind": kind,
        "settings": dict(settings),
        "metrics": {key: float(value) for key, value in metrics.items()},
        "history": rows,
        "artifacts": [Path(path).as_posix() for path in artifacts],
        "tags": dict(tags),
        "started": float(started),
        "seconds": float(seconds),
    }
    path = Path(directory, result_id.replace("/", "__") + ".json")
    write_json(path, record)
    return path


def read_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records in ``directory``, oldest first.

    Each has also a ``digest``: the SHA-256 of its file. Two executions with the same result_id have different digests. A file
    that is not a record is skipped with a warning, so that the others are logged.
    """
    records = []
    for path in Path(directory).glob("*.json"):
        content = path.read_bytes()
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            record = None
        if not isinstance(record, dict) or not record.keys() >= RECORD:
            warnings.warn(f"{path} is not a record of this benchmark and is skipped; remove it", stacklevel=2)
            continue
        records.append(record | {"digest": hashlib.sha256(content).hexdigest()})
    return sorted(records, key=lambda record: (record["started"], record["result_id"]))
