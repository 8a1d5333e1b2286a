"""Seals: beside each output a small hidden file with the output's digest, and with those of the files it was made from.

A step seals what it writes, and checks the seal of each file that it reads, once. So it refuses a file that has changed since,
files that do not belong together, and to replace what a later step has written. A file without a seal, such as a user's own
weights, is taken as it is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibsgl.files import write_json, written
from ibsgl.provenance import digest_file

# Inputs of these kinds decide whether files belong together: all files of a step are of one index, and of its networks.
_INDEX, _WEIGHTS = "index", "weights"


@dataclass
class _Step:
    """The step that this process runs: when it began, and the digests of what it has read, by kind."""

    started: int = field(default_factory=time.time_ns)
    read: dict[str, dict[Path, str]] = field(default_factory=dict)
    made_from: dict[Path, dict[str, list[str]]] = field(default_factory=dict)


_step = _Step()


def begin() -> None:
    """Begin a step: forget what was read before."""
    global _step
    _step = _Step()


def seal_of(path: str | os.PathLike[str]) -> Path:
    """The path of the seal of the file ``path``."""
    path = Path(path)
    return path.with_name(f".{path.name}.seal")


@contextmanager
def sealed(path: str | os.PathLike[str]) -> Iterator[Path]:
    """:func:`ibsgl.files.written`, with a seal.

    Raises:
        ValueError: a step that began later has written ``path``. Such a file is left as it is.
    """
    path = Path(path)
    with written(path) as temporary:
        yield temporary
        found = _read(path) if path.exists() else {}
        if found.get("started", 0) > _step.started:
            raise ValueError(
                f"{path} was written by a step that began later than this one and is left as it is; delete it if the clock "
                "was wrong"
            )
        inputs = {kind: sorted(set(digests.values())) for kind, digests in _step.read.items()}
        # Before the file: if the process ends between the two, the file is found to be another than the sealed one.
        write_json(seal_of(path), {"sha256": digest_file(temporary), "started": _step.started, "made_from": inputs})


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content``, a structure of tensors, to ``path`` with ``torch.save``, sealed. Equal tensors give equal files."""
    import torch

    # With a path, torch.save would write the file's name into the archive, and the temporary name is random.
    with sealed(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def remove(path: Path) -> None:
    """Delete the file ``path`` and its seal, if they exist."""
    for file in (path, seal_of(path)):
        file.unlink(missing_ok=True)


def intact(path: Path) -> bool:
    """Whether the file ``path`` is as it was when it was sealed. A file without a seal is intact."""
    found = _read(path)
    return not found or found["sha256"] == digest_file(path)


def check(path: Path, kind: str | None) -> None:
    """Check a file that a step reads, or each file in a folder. A path that does not exist is left to whoever reads it.

    Args:
        path: the file or folder.
        kind: what it is, such as ``index``, ``weights`` or ``maps``; ``None``: :func:`check_together` does not look at it.

    Raises:
        ValueError: a file has changed since it was written.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".seal" or not file.is_file():
            continue
        found, digest = _read(file), digest_file(file)
        if found and found["sha256"] != digest:
            raise ValueError(
                f"{file} has changed since it was written; delete it and run again (if it is your own file, delete "
                f"{seal_of(file).name} beside it)"
            )
        if kind is None:
            continue
        _step.read.setdefault(kind, {})[file] = digest
        _step.made_from[file] = found.get("made_from", {})


def check_together() -> None:
    """Check that the files that the step has read belong together: that they are of one index, and of the given networks.

    Raises:
        ValueError: two files are of different indexes, or a file is of other weights than the given ones.
    """
    of_index: dict[str, Path] = {digest: file for file, digest in _step.read.get(_INDEX, {}).items()}
    for file, made_from in _step.made_from.items():
        for digest in made_from.get(_INDEX, ()):
            of_index.setdefault(digest, file)
    if len(of_index) > 1:
        first, second = list(of_index.values())[:2]
        raise ValueError(f"{first} and {second} are of different data or of different splits; give files of one run")
    given = _step.read.get(_WEIGHTS, {})
    if not given:
        return
    allowed = set(given.values())
    for file in given:
        allowed |= set(_step.made_from[file].get(_WEIGHTS, ()))
    for file, made_from in _step.made_from.items():
        if not allowed.issuperset(made_from.get(_WEIGHTS, ())):
            names = ", ".join(map(str, given))
            raise ValueError(f"{file} was made from other weights than {names}; give files of one run")


def _read(path: Path) -> dict[str, Any]:
    """The seal of ``path``; nothing if there is none."""
    file = seal_of(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["sha256"], str) or not isinstance(found["started"], int):
            raise ValueError
        return dict(found)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} is not a seal of this benchmark; delete {path.name} beside it and run again"
        ) from None
