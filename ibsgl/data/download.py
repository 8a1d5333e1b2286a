"""Download of a data set in VOC layout, with mirrors, resume and checksums. The data set appears complete or not at all.

The size and checksum of an archive are known before. So an interrupted download can continue at any mirror, and a wrong file is
never unpacked.
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

from filelock import FileLock
from pydantic import Field, field_validator
from tqdm import tqdm

from ibsgl.errors import DownloadError
from ibsgl.redaction import redacted
from ibsgl.settings import Positive, Settings

TRIES = 5
_BUSY = {408, 425, 429, 500, 502, 503, 504}
# Bytes that can be lost if a connection breaks. Larger pieces are not faster.
_PIECE = 1 << 16


class Archive(Settings):
    """A tar file with its published size and checksum."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the file's name, at each mirror and in `data.download.folder`",
    )
    md5: str = Field(
        pattern=r"^[0-9a-f]{32}$",
        description="published checksum, verified before anything is unpacked (32 hexadecimal digits)",
    )
    bytes: int = Field(ge=1, description="published size. A file of another size is refused before it is downloaded")


class Download(Settings):
    """Where a data set in VOC layout is downloaded from if its folder is not there."""

    mirrors: list[str] = Field(
        min_length=1,
        description="where to look for each archive, in this order: the address of the folder that holds it, or a folder on "
        "this machine, whose files are used where they are",
    )
    folder: str = Field(
        "data", description="where downloads are kept. An archive that is already there is not downloaded"
    )
    archives: list[Archive] = Field(
        min_length=1, description="the archives that together hold one folder in VOC layout: uncompressed tar files"
    )
    images: dict[str, Positive] = Field(
        description="how many images each list of `data.splits` has. Some numbers are needed before the data are there"
    )

    @field_validator("mirrors")
    @classmethod
    def _no_password(cls, mirrors: list[str]) -> list[str]:
        for mirror in mirrors:
            if redacted(mirror) != mirror:
                raise ValueError("an address with a user or a token would stand in logs; put them into ~/.netrc")
        return mirrors


class _Refused(Exception):
    """A mirror does not have the archive, and another try will not help."""


def fetch(
    root: Path,
    archives: Sequence[Archive],
    *,
    mirrors: Sequence[str],
    folder: Path,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> bool:
    """Create the folder ``root`` in VOC layout from ``archives``, unless it exists.

    ``root`` appears complete or not at all. A folder that is not empty is left as it is. Archives are verified before they are
    unpacked. Several processes may call this at once: one works, and the others wait.

    Args:
        root: the folder that will have ``JPEGImages``, ``Annotations`` and ``ImageSets``. Their parent folders in the archives
            do not matter.
        archives: uncompressed tar files by name, MD5 and size in bytes. Together they have one such folder.
        mirrors: where each archive is searched, in this order: the address of a folder (``https://…``), or a folder on this
            machine. Archives in a folder of this machine are not copied.
        folder: where downloads are kept, complete and incomplete (``<name>.part``). An archive in it is not downloaded.
        pause: seconds before the second try. It doubles with every further try.
        timeout: seconds without a byte after which a connection counts as broken.

    Returns:
        True if the folder was created, False if it existed.

    Raises:
        DownloadError: no mirror has an archive, an archive has something else than files and folders below its top, or a file
            cannot be written.
    """
    root, folder = Path(root), Path(folder)
    try:
        # Before the locks, because an existing data set may be in a folder without write permission.
        if _has_files(root):
            return False
        root.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            if _has_files(root):
                return False
            with FileLock(folder / ".download.lock"):
                files = [_obtain(archive, mirrors, folder, pause, timeout) for archive in archives]
            _unpack(files, root)
    except OSError as error:
        raise DownloadError(f"{error.filename or root}: {error.strerror or error}; nothing was unpacked") from error
    return True


def _has_files(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _obtain(archive: Archive, mirrors: Sequence[str], folder: Path, pause: float, timeout: float) -> Path:
    """A verified copy of ``archive``: the one in ``folder``, or that of the first mirror that has it."""
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists():
        # Downloads get this name only after they are verified, so the user has put this file here.
        if fault := _fault(target, archive):
            raise DownloadError(f"{target}: {fault}; put the right file there, or delete it so that it is downloaded")
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
            faults.append(redacted(f"{mirror}: {refusal}"))
    raise DownloadError(
        f"{archive.name}: no mirror has it ({'; '.join(faults)}); start again later, or put the file of {archive.bytes} bytes "
        f"with MD5 {archive.md5} at {target}"
    )


def _fault(file: Path, archive: Archive) -> str:
    """The fault of ``file``: its size or its checksum. Empty if there is none."""
    if (size := file.stat().st_size) != archive.bytes:
        return f"expected {archive.bytes} bytes, found {size}"
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    return "" if found == archive.md5 else f"expected MD5 {archive.md5}, found {found}"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _download(url: str, archive: Archive, part: Path, pause: float, timeout: float) -> None:
    """Complete ``part`` from ``url`` and verify it.

    After :class:`_Refused`, another mirror can continue with ``part``.
    """
    # Imported here: few jobs download, and the import takes a sixth of a second.
    import requests

    if _size(part) > archive.bytes:
        part.unlink()
    furthest = _size(part)
    continued, ranges, failures = furthest > 0, True, 0
    while True:
        try:
            if _size(part) < archive.bytes:
                _transfer(url, archive, part, _size(part) if ranges else 0, timeout)
            if not (fault := _fault(part, archive)):
                return
            part.unlink()
            # If the first bytes are from an earlier call or another mirror, this mirror's file may still be right.
            if not continued:
                raise _Refused(fault)
            continued = False
            continue
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            reason = type(error).__name__
        except requests.HTTPError as error:
            reason = str(error)
            ranges = ranges and error.response.status_code != requests.codes.range_not_satisfiable
        except requests.RequestException as error:
            raise _Refused(str(error)) from error
        failures += 1
        # Broken connections do not count as failures while each try adds at least a hundredth of the file.
        if _size(part) - furthest >= archive.bytes / 100:
            furthest, failures = _size(part), 0
        if failures == TRIES:
            raise _Refused(f"{TRIES} tries in a row failed, the last with {reason}; {_size(part)} bytes are here")
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _transfer(url: str, archive: Archive, part: Path, start: int, timeout: float) -> None:
    """Append the bytes of ``url`` from ``start`` on to ``part``, or write all of them if the server ignores the range.

    An entity tag (If-Range) is not needed, because the size is checked here and the checksum at the end.
    """
    import requests

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
                raise _Refused(f"requested bytes {start}-, received {span or 'no Content-Range'}")
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
    """Unpack ``files``, which together have one folder in VOC layout, to ``root``."""
    temporary = root.with_name(f".{root.name}.unpacking")
    # It may be left by a process that was killed. This process has the lock.
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
    bytes_left = file.stat().st_size

    def check_member(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        nonlocal bytes_left
        name = PurePosixPath(member.name)
        if not (member.isreg() or member.isdir()):
            raise DownloadError(f"{file}: {member.name!r} is neither a file nor a folder; nothing was unpacked")
        if name.is_absolute() or ".." in name.parts:
            raise DownloadError(f"{file}: {member.name!r} would be outside the target; nothing was unpacked")
        # A sparse file can be larger than the archive.
        bytes_left -= member.size
        if bytes_left < 0:
            raise DownloadError(f"{file}: {member.name!r} has more bytes than the archive; nothing was unpacked")
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(file, "r:") as archive:
            archive.extractall(target, filter=check_member)
    except tarfile.TarError as error:
        raise DownloadError(
            f"{file}: it cannot be read as an uncompressed tar ({error}); nothing was unpacked"
        ) from error
