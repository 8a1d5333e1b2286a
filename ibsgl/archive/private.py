"""What an archive does not tell: absolute paths, passwords in addresses, and the names of the user and the host."""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
import yaml

# A path of at least two parts, with or without "file://" or "sqlite:///". Addresses such as https://host/a/b are no paths.
_PATH = re.compile(r"(?<![\w./>~-])(?:\w+:/{2,3})?/[\w.@+%~-]+(?:/[\w.@+%~-]+)+/?")
_PASSWORD = re.compile(r"(?<=//)[^/@\s]*@")
# The last part of a path is kept if it is a file's name. A folder's name could be that of the user.
_FILES = re.compile(r".+\.(?:py|smk|pth?|tar|parquet|json|ya?ml|csv|log|txt|png|pdf)")
# Under these keys are the users' names for things. Such a name may begin with "/" and is no path.
_NAMES = {"classes", "class_names", "labels"}


def _short(path: str) -> str:
    name = PurePosixPath(path).name
    return f"<path>/{name}" if _FILES.fullmatch(name) else "<path>"


def without_paths(text: str) -> str:
    """``text`` of a log without absolute paths, passwords, and the names of this machine and its user."""
    for folder in map(str, (Path.cwd(), Path.home(), sys.prefix)):
        if re.search(r"[^\w.@+%~/-]", folder):
            # It has a space, for example, at which the expression would stop.
            text = text.replace(folder, "/path/path")
    text = _PATH.sub(lambda match: _short(match[0]), _PASSWORD.sub("", text))
    host = socket.gethostname()
    # In a container the user is root, which is also a word.
    names = {host, host.partition(".")[0], _user()} - {"", "root", "localhost"}
    return re.sub(
        "|".join(rf"\b{re.escape(name)}\b" for name in sorted(names, key=len, reverse=True)) or r"(?!)", "<name>", text
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run with a user number that has no name.
        return ""


def without_path_values(content: Any) -> Any:
    """``content`` of JSON or YAML with absolute paths as values shortened, but not the names of classes and methods."""
    if isinstance(content, dict):
        return {key: value if key in _NAMES else without_path_values(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_path_values(value) for value in content]
    if isinstance(content, str):
        content = _PASSWORD.sub("", content)
        path = content.removeprefix("file://")
        return _short(path) if path.startswith("/") else content
    return content


def shortened(file: Path, kind: str) -> bytes | None:
    """The content of ``file`` as an archive has it, or ``None`` if that is the file as it is.

    Args:
        file: a file of a run, or a config.
        kind: its kind, one of :data:`ibsgl.archive.contents.KINDS`.

    Raises:
        ValueError: a JSON, YAML or Parquet file cannot be read. The message is one line.
    """
    try:
        if kind == "logs":
            # Bytes that are no UTF-8 stay as they are.
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
            return _if_changed(text, without_paths(text))
        if file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            short = without_path_values(content)
            return None if short == content else (json.dumps(short, indent=1, ensure_ascii=False) + "\n").encode()
        if kind == "configs":
            text = file.read_text(encoding="utf-8")
            # A comment may have a path too. Then only the keys and values are kept.
            if not _PATH.search(text) and not _PASSWORD.search(text):
                return None
            return yaml.safe_dump(
                without_path_values(yaml.safe_load(text)), sort_keys=False, allow_unicode=True
            ).encode()
        return _shortened_parquet(file) if file.suffix == ".parquet" else None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())}); make it again") from None


def _if_changed(text: str, short: str) -> bytes | None:
    return None if short == text else short.encode("utf-8", errors="surrogateescape")


def _shortened_parquet(file: Path) -> bytes | None:
    """The same table, with other facts in its schema. Most files have no path and stay as they are."""
    metadata = pq.read_schema(file).metadata or {}
    if b"ibsgl" not in metadata:
        return None
    facts = json.loads(metadata[b"ibsgl"])
    short = without_path_values(facts)
    if short == facts:
        return None
    sink = io.BytesIO()
    table = pq.read_table(file)
    pq.write_table(
        table.replace_schema_metadata(metadata | {b"ibsgl": json.dumps(short, ensure_ascii=False).encode()}), sink
    )
    return sink.getvalue()
