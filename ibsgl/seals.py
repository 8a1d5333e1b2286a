"""Seals: beside each output a small hidden file with the output's digest, and with those of the files it was made from.

A step seals what it writes, and checks the seal of each file that it reads, once. So it refuses a file that has changed since,
and files of different data or networks. It does not replace what a later step has written. A file without a seal, such as a
user's own weights, is taken as it is.
"""

from __future__ import annotations

import hashlib
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
    """The step that this process runs: when it began, and by kind the files that it has read, with their digests.

    ``made_from`` has what is in their seals; ``None`` for a file without a seal.
    """

    started: int = field(default_factory=time.time_ns)
    read: dict[str, dict[Path, str]] = field(default_factory=dict)
    made_from: dict[Path, dict[str, list[str]] | None] = field(default_factory=dict)

    def indexes(self) -> dict[str, Path]:
        """The indexes that were read, or that what was read was made from: digest → a file of it."""
        found = {digest: file for file, digest in self.read.get(_INDEX, {}).items()}
        for file, made_from in self.made_from.items():
            for digest in (made_from or {}).get(_INDEX, ()):
                found.setdefault(digest, file)
        return found


_step = _Step()


def begin() -> None:
    """Begin a step: forget what was read before."""
    global _step
    _step = _Step()


def seal_of(path: str | os.PathLike[str]) -> Path:
    """The path of the seal of the file or folder ``path``."""
    path = Path(path)
    if path.name in ("", ".."):
        path = path.resolve()
    return path.parent / f".{path.name}.seal"


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
        seal = {
            "sha256": digest_file(temporary),
            # The process may end after the seal is written and before the file is replaced.
            "before": found.get("sha256", ""),
            "started": _step.started,
            "made_from": inputs | {_INDEX: sorted(_step.indexes())},
        }
        write_json(seal_of(path), seal)


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content``, a structure of tensors, to ``path`` with ``torch.save``, sealed. Equal tensors give equal files."""
    import torch

    # With a path, torch.save would write the file's name into the archive, and the temporary name is random.
    with sealed(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # It hides what the system has said, such as that the disk is full.
            if isinstance(system := error.__context__, OSError):
                raise OSError(system.errno, system.strerror, str(path)) from None
            raise


def remove(path: Path) -> None:
    """Delete the file ``path`` and its seal, if they exist."""
    for file in (path, seal_of(path)):
        file.unlink(missing_ok=True)


def intact(path: Path) -> bool:
    """Whether the file ``path`` is as it was when it was sealed, the last time or the time before. Without a seal it is."""
    try:
        found = _read(path)
    except ValueError:
        return False
    return not found or digest_file(path) in (found["sha256"], found.get("before"))


def check(path: Path, kind: str | None) -> None:
    """Check a file that a step reads, or each file in a folder. A path that does not exist is left to whoever reads it.

    Args:
        path: the file or folder.
        kind: what it is, such as ``index``, ``weights`` or ``maps``; ``None``: :func:`check_together` does not look at it.

    Raises:
        ValueError: a file has changed since it was written.
    """
    folder = path.is_dir()
    for file in sorted(file for file in path.rglob("*") if file.is_file()) if folder else [path]:
        if file.suffix == ".seal" or not file.is_file():
            continue
        found, digest = _read(file), digest_file(file)
        if found and found["sha256"] != digest:
            # Snakemake does not miss a single file of a folder.
            wrong = f"the folder {path}" if folder else "it"
            raise ValueError(
                f"{file} has changed since it was written; delete {wrong} and run again (if it is your own file, delete "
                f"{seal_of(file).name} beside it)"
            )
        if kind is not None:
            _step.read.setdefault(kind, {})[file] = digest
            _step.made_from[file] = found["made_from"] if found else None


def seal_folder(folder: Path) -> None:
    """Seal a folder of images that this step has made, as a whole."""
    write_json(seal_of(folder), {"sha256": _digest_tree(folder), "started": _step.started, "made_from": {}})


def check_folder(folder: Path) -> None:
    """Check a folder of :func:`seal_folder`. A folder without a seal, such as a user's own images, is taken as it is.

    A folder that is not there is left to whoever reads it.

    Raises:
        ValueError: a file in it was changed, added or removed since.
    """
    found = _read(folder) if folder.is_dir() else {}
    if found and found["sha256"] != _digest_tree(folder):
        raise ValueError(
            f"{folder}: a file in it has changed since the folder was made; delete the folder and run again (if you have "
            f"changed it yourself, delete {seal_of(folder).name} beside it)"
        )


def _digest_tree(folder: Path) -> str:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    # Snakemake puts a hidden file into a folder that a job has made, and other programs hide folders there.
    content = [[name, digest_file(file)] for name, file in sorted(files.items()) if "/." not in f"/{name}"]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_together() -> None:
    """Check that the files that the step has read belong together: that they are of one index, and of the given networks.

    A network without a seal may be any. Then nothing is said about networks.

    Raises:
        ValueError: two files are of different indexes; a file is of other weights than the given ones; or a network was trained
            from another one than the given pretrained one.
    """
    if len(of_index := _step.indexes()) > 1:
        first, second = list(of_index.values())[:2]
        raise ValueError(f"{first} and {second} are of different data or of different splits; give files of one run")
    given = _step.read.get(_WEIGHTS, {})
    parents = {file: (_step.made_from[file] or {}).get(_WEIGHTS, []) for file in given}
    if not given or any(_step.made_from[file] is None for file in given):
        return
    allowed = set(given.values())
    if all(parents.values()):
        # No pretrained network is given: what was made from it belongs to the others too.
        allowed.update(*parents.values())
    for file, made_from in _step.made_from.items():
        if not allowed.issuperset((made_from or {}).get(_WEIGHTS, ())):
            names = ", ".join(map(str, given))
            raise ValueError(f"{file} was made from other weights than {names}; give files of one run")


def _read(path: Path) -> dict[str, Any]:
    """The seal of ``path``; nothing if there is none."""
    file = seal_of(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        types = {"sha256": str, "started": int, "made_from": dict}
        if not all(isinstance(found[key], kind) for key, kind in types.items()):
            raise ValueError
        return dict(found)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} is not a seal of this benchmark; delete {path.name} beside it and run again"
        ) from None
