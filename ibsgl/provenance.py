"""Where a result comes from: digests of files and of code, facts about the machine, and a record on disk per result.

A step of the workflow writes its record when it ends; :mod:`ibsgl.tracking` shows the records to MLflow later. So
a step neither waits for a tracking server nor fails with it, nor pays the seconds that importing MLflow takes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

RECORD = frozenset({"cell", "kind", "settings", "metrics", "history", "artifacts", "tags", "started", "seconds"})


def collect(device: str, **extra: Any) -> dict[str, Any]:
    """The facts that a result needs beside it to be made again.

    Args:
        device: what the step computed on, as ``str(torch.device)``: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        extra: further facts, for example ``data_digest``.

    Returns:
        ``commit`` and ``dirty`` (changed or untracked files) of the code's repository, ``"unknown"`` and True where
        there is none; ``device`` (the processor's or GPU's name), ``platform``, ``versions`` by package, and ``extra``.
        No paths.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.startswith("cuda"):
        import torch

        versions["cuda"] = torch.version.cuda
        name = torch.cuda.get_device_name(device)
    else:
        name = _processor()
    commit, dirty = _commit(Path(__file__).resolve())
    facts = {"commit": commit, "dirty": dirty, "device": name, "platform": platform.platform(), "versions": versions}
    return facts | extra


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def _commit(file: Path) -> tuple[str, bool]:
    """Commit and dirty flag of the repository that tracks ``file``."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        # Several steps ask at once; none may hold the lock of the index.
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--verify", "HEAD")
        # A package installed into an environment inside some repository is not that repository's code.
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
    """16 hexadecimal digits that change when a file in ``folder`` is added, removed, resized or written, at any depth.

    Reads names, sizes and dates only: tens of thousands of files take a fraction of a second.
    """
    digest = hashlib.sha256()
    for path, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            file = os.path.join(path, name)
            facts = os.stat(file)
            digest.update(f"{os.path.relpath(file, folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def source_digest(*modules: str) -> str:
    """16 hexadecimal digits that change with the code of ``modules``, and not with its comments, docstrings or layout.

    As a ``params`` value of a rule it re-runs what an edit affects and nothing when the code is only reformatted.

    Args:
        modules: dotted names; a package stands for every module below it. None is imported.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    digest = hashlib.sha256()
    for module in sorted(set(modules)):
        for name, file in _sources(module):
            facts = os.stat(file)
            digest.update(f"{name}={_code_digest(file, facts.st_mtime_ns, facts.st_size)}\n".encode())
    return digest.hexdigest()[:16]


def _sources(module: str) -> list[tuple[str, str]]:
    """(name, file) of every source file of a module or package, the name free of where it is installed."""
    top, *rest = module.split(".")
    spec: ModuleSpec | None = find_spec(top)
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            spec = None
            break
        name = f"{name}.{part}"
        # Unlike importlib.util.find_spec, the finder itself does not import the parent package.
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {module!r} to take the digest of; check the name")
    if spec.submodule_search_locations is None:
        return [(module, spec.origin)]
    found = []
    for folder in map(Path, spec.submodule_search_locations):
        found += [(f"{module}:{file.relative_to(folder).as_posix()}", str(file)) for file in folder.rglob("*.py")]
    return sorted(found)


@cache
def _code_digest(file: str, changed: int, size: int) -> str:
    """Digest of one file's code; ``changed`` and ``size`` are there so that the cache notices an edit."""
    content = Path(file).read_bytes()
    if not file.endswith(".py"):
        return hashlib.sha256(content).hexdigest()
    tree = ast.parse(content, filename=file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def write_record(
    directory: str | os.PathLike[str],
    cell: str,
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
    """Write the record of one execution of a step, whole or not at all; it replaces an earlier record of the same cell.

    Args:
        directory: the records of one config.
        cell: what was made, for example ``resnet/guided/rise`` or ``table3``.
        kind: ``training``, ``evaluation``, ``table`` or ``figure``.
        settings: the settings that the result depends on.
        metrics: final values by name.
        tags: what :func:`collect` returned.
        started: seconds since the epoch.
        seconds: how long the step took.
        history: one row per epoch, each with its number as ``epoch``.
        artifacts: files that belong to the result, relative to the working directory.

    Returns:
        The record's path.

    Raises:
        ValueError: a row of ``history`` has no ``epoch``.
    """
    history = [{key: float(value) for key, value in row.items()} for row in history]
    if any("epoch" not in row for row in history):
        raise ValueError(f"{cell}: every row of the history needs the number of its epoch under 'epoch'")
    record = {
        "cell": cell,
        "kind": kind,
        "settings": dict(settings),
        "metrics": {key: float(value) for key, value in metrics.items()},
        "history": history,
        "artifacts": [Path(path).as_posix() for path in artifacts],
        "tags": dict(tags),
        "started": float(started),
        "seconds": float(seconds),
    }
    path = Path(directory, cell.replace("/", "__") + ".json")
    write_json(path, record)
    return path


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON under a temporary name beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_records(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every record in ``directory``, oldest first; empty where there is none.

    Each also has its ``digest``: SHA-256 of the file, which tells one execution of a cell from the next. A file that is
    not a record is passed over with a warning, so that it does not keep the others from being logged.
    """
    records = []
    for path in Path(directory).glob("*.json"):
        content = path.read_bytes()
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            record = None
        if not isinstance(record, dict) or not record.keys() >= RECORD:
            warnings.warn(f"{path} is not a record of this benchmark and is passed over; remove it", stacklevel=2)
            continue
        records.append(record | {"digest": hashlib.sha256(content).hexdigest()})
    return sorted(records, key=lambda record: (record["started"], record["cell"]))
