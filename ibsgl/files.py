"""Writing files in one piece: first under a temporary name, then renamed. So nobody reads a file that is half written."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# What this process is writing now.
_unfinished: set[Path] = set()


def discard_unfinished() -> None:
    """Delete what this process is writing. It is to end, and will not finish it."""
    for temporary in list(_unfinished):
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, with the same suffix. It is renamed to ``path`` if the block succeeds.

    A missing folder is created. If the block raises, the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    _unfinished.add(temporary)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def _raise_of_system(error: Exception, path: str | os.PathLike[str]) -> None:
    """Raise ``error`` again, with the name of the file ``path``, if the system has said it. Arrow's have no number."""
    if isinstance(error, OSError) and error.errno:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a reader become a ``ValueError`` of one line with the name of the file ``path``.

    What the system says of the file, such as that it is missing, stays an ``OSError``.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except Exception as error:
        # A damaged file can make a library raise anything.
        _raise_of_system(error, path)
        reason = " ".join(str(error).split())
        if type(error) is ValueError and str(path) in reason:
            raise
        raise ValueError(
            f"{path} cannot be read ({reason or type(error).__name__}): it is damaged, or from another program"
        ) from error


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU. Nothing in the file is executed.

    Raises:
        ValueError: the file cannot be read. The message is one line.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: torch.load cannot read it as a file of tensors alone; of a network, save its state_dict()"
        ) from error
    except Exception as error:
        _raise_of_system(error, path)
        # Most of these messages have several lines, of which the first says what is wrong.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: the tensors cannot be read ({reason}); check that the file is complete") from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` to ``path`` as JSON."""
    with written(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def of_the_future(folder: str | os.PathLike[str]) -> Path | None:
    """A file in ``folder``, at any depth, whose date is more than a minute ahead of the clock; ``None`` if there is none."""
    latest = time.time() + 60
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            if path.lstat().st_mtime > latest:
                return path
    return None


def full_disk(folder: str | os.PathLike[str]) -> str:
    """What to say if the disk of ``folder`` is full; an empty text if it is not."""
    free = shutil.disk_usage(folder).free
    if free >= 64 * 2**20:
        return ""
    return (
        f"The disk of {folder} has {free / 2**20:.0f} MB left. That is probably why jobs failed, and why their logs are "
        "empty. Free some space and call the same command again; finished results are kept"
    )
