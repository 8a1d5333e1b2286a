"""Verified download of a data set in VOC layout: mirrors, resume, checksums before unpacking, nothing half-made.

An archive is known by its size and checksum, wherever it comes from; so a broken download goes on where it stopped, from any
mirror, and a file that turns out to be another one is never unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock
from tqdm import tqdm

from ibsgl.config import Archive

TRIES = 5
_BUSY = {408, 425, 429, 500, 502, 503, 504}
# What a cut connection can cost; larger pieces save nothing.
_PIECE = 1 << 16


class DownloadError(ValueError):
    """The data set cannot be had; the message is one line naming the file, what is wrong and what to do."""


class _Refused(Exception):
    """A mirror does not have the archive, and asking again will not help."""


def fetch(
    root: Path,
    archives: Sequence[Archive],
    *,
    mirrors: Sequence[str],
    folder: Path,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> bool:
    """Make the VOC-layout folder ``root`` from ``archives``, unless it is there.

    ``root`` appears whole or not at all, and one that holds anything is not touched. Archives are verified before they are
    unpacked. Several processes may call this at once: one works, the others wait for it.

    Args:
        root: the folder that shall hold ``JPEGImages``, ``Annotations`` and ``ImageSets``, whatever stands above them in the
            archives.
        archives: uncompressed tar files by name, MD5 and size in bytes; together they hold one such folder.
        mirrors: where to look for each archive, in this order: the address of a folder (``https://…``), or a folder here,
            whose files are used where they are.
        folder: where downloads are kept, finished and unfinished (``<name>.part``). An archive in it needs no mirror.
        pause: seconds before a second try; doubled with each further one.
        timeout: seconds without a byte after which a connection is given up.

    Returns:
        True if the folder was made, False if it was there.

    Raises:
        DownloadError: no mirror has an archive, an archive holds anything but files and folders below its top, or the disk
            does not take it.
    """
    root, folder = Path(root), Path(folder)
    try:
        # Before the locks: a data set of one's own may lie where nobody can write.
        if _is_there(root):
            return False
        root.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            if _is_there(root):
                return False
            with FileLock(folder / ".download.lock"):
                files = [_obtain(archive, mirrors, folder, pause, timeout) for archive in archives]
            _unpack(files, root)
    except OSError as error:
        raise DownloadError(f"{error.filename or root}: {error.strerror or error}; nothing was unpacked") from error
    return True


def _is_there(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _obtain(archive: Archive, mirrors: Sequence[str], folder: Path, pause: float, timeout: float) -> Path:
    """A verified copy of ``archive``: the one in ``folder``, or the first mirror's."""
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists():
        # Downloads get this name after they are verified, so this file is the user's own.
        if fault := _fault(target, archive):
            raise DownloadError(f"{target}: {fault}; put the right file there, or delete it to have it downloaded")
        return target
    faults = []
    for mirror in mirrors:
        try:
            if "://" not in mirror:
                file = Path(mirror) / archive.name
                if fault := _fault(file, archive) if file.is_file() else "there is no such file":
                    raise _Refused(fault)
                return file
            _download(f"{mirror.rstrip('/')}/{archive.name}", archive, part, pause, timeout)
            os.replace(part, target)
            return target
        except _Refused as refusal:
            faults.append(f"{mirror}: {refusal}")
    raise DownloadError(
        f"{archive.name}: no mirror has it ({'; '.join(faults)}); start again later, or put the file of {archive.bytes} bytes "
        f"with MD5 {archive.md5} at {target}"
    )


def _fault(file: Path, archive: Archive) -> str:
    """What is wrong with ``file``, or nothing."""
    if (size := file.stat().st_size) != archive.bytes:
        return f"expected {archive.bytes} bytes, found {size}"
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    return "" if found == archive.md5 else f"expected MD5 {archive.md5}, found {found}"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _download(url: str, archive: Archive, part: Path, pause: float, timeout: float) -> None:
    """Complete ``part`` from ``url`` and verify it; on :class:`_Refused` what it holds can be of use to another mirror."""
    if _size(part) > archive.bytes:
        part.unlink()
    furthest = _size(part)
    others, ranges, failures = furthest > 0, True, 0
    while True:
        try:
            if _size(part) < archive.bytes:
                _transfer(url, archive, part, _size(part) if ranges else 0, timeout)
            if not (fault := _fault(part, archive)):
                return
            part.unlink()
            # Begun by an earlier call or at another mirror: no proof yet that this one's file is wrong.
            if not others:
                raise _Refused(fault)
            others = False
            continue
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            reason = type(error).__name__
        except requests.HTTPError as error:
            reason = str(error)
            ranges = ranges and error.response.status_code != requests.codes.range_not_satisfiable
        except requests.RequestException as error:
            raise _Refused(str(error)) from error
        failures += 1
        # Many cuts are no reason to stop while each brings us on; by a hundredth at least, so that there is an end.
        if _size(part) - furthest >= archive.bytes / 100:
            furthest, failures = _size(part), 0
        if failures == TRIES:
            raise _Refused(f"{TRIES} tries in a row failed, the last with {reason}; {_size(part)} bytes are here")
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _transfer(url: str, archive: Archive, part: Path, start: int, timeout: float) -> None:
    """Bytes ``start``… of ``url`` appended to ``part``, or all of them where the server ignores the range.

    An entity tag (If-Range) would add nothing: the size is checked here and the checksum at the end.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        status = f"{response.status_code} {response.reason}"
        if response.status_code in _BUSY or (start and response.status_code == requests.codes.range_not_satisfiable):
            raise requests.HTTPError(status, response=response)
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise _Refused(status)
        total = response.headers.get("Content-Length")
        if response.status_code == requests.codes.partial_content:
            span, _, total = response.headers.get("Content-Range", "").partition("/")
            if not span.startswith(f"bytes {start}-"):
                raise _Refused(f"asked for bytes {start}-, it answers with {span or 'no Content-Range'}")
        else:
            start = 0
        if total and total.isdecimal() and int(total) != archive.bytes:
            raise _Refused(f"expected {archive.bytes} bytes, found {total}")
        bar = tqdm(
            total=archive.bytes,
            initial=start,
            desc=archive.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None,
        )
        with part.open("ab" if start else "wb") as file, bar:
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                bar.update(len(piece))
                if file.tell() > archive.bytes:
                    raise _Refused(f"expected {archive.bytes} bytes, found more")
    if _size(part) < archive.bytes:
        raise requests.ConnectionError


def _unpack(files: Sequence[Path], root: Path) -> None:
    """The one VOC-layout folder that ``files`` hold together, at ``root``."""
    temporary = root.with_name(f".{root.name}.unpacking")
    # Of a process that was killed; whoever is here has the lock.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for file in files:
            _extract(file, temporary)
        found = [path.parent for path in temporary.glob("**/ImageSets")]
        if len(found) != 1:
            names = ", ".join(file.name for file in files)
            raise DownloadError(
                f"{names}: {len(found)} folders in VOC layout instead of one; name the archives of one set"
            )
        os.replace(found[0], root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(file: Path, target: Path) -> None:
    """Unpack an uncompressed tar of files and folders into ``target``."""
    room = file.stat().st_size

    def plain(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        nonlocal room
        name = PurePosixPath(member.name)
        if not (member.isreg() or member.isdir()):
            raise DownloadError(f"{file}: {member.name!r} is neither a file nor a folder; nothing was unpacked")
        if name.is_absolute() or ".." in name.parts:
            raise DownloadError(f"{file}: {member.name!r} would lie outside of the target; nothing was unpacked")
        # A sparse file would unpack to them.
        room -= member.size
        if room < 0:
            raise DownloadError(f"{file}: {member.name!r} claims more bytes than the archive has; nothing was unpacked")
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(file, "r:") as archive:
            archive.extractall(target, filter=plain)
    except tarfile.TarError as error:
        raise DownloadError(
            f"{file}: not an uncompressed tar that can be read ({error}); nothing was unpacked"
        ) from error
