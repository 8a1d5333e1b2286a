"""What must not stand in a log: the user names, passwords and tokens in addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TextIO

# An address with a user before "@"; an address with a query; and the last part of a path with keys and values after it, as
# some messages have it without the host. Each ends at a space, a quote or a bracket.
_USER = re.compile(r"(?<=://)[^/@\s'\"<>]*@")
_QUERY = re.compile(r"(://[^?\s'\"<>]*)\?[^\s'\"<>#)\]]+")
_KEYS = re.compile(r"(?<=/)([^/?\s'\"<>]*)\?[^\s'\"<>#)\]=?]*=[^\s'\"<>#)\]]*")


def redacted(text: str) -> str:
    """``text`` without the user names, passwords and queries of its addresses."""
    return _KEYS.sub(r"\1?…", _QUERY.sub(r"\1?…", _USER.sub("", text)))


class RedactedStream:
    """A text stream that writes :func:`redacted` lines to ``stream``."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Write the whole lines. What follows the last line break waits for the rest of its line."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._stream.writelines(f"{redacted(line)}\n" for line in lines)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the whole lines."""
        self._stream.flush()

    def close(self) -> None:
        """Write what waits."""
        self._stream.write(redacted(self._rest))
        self._rest = ""
        self._stream.flush()

    def isatty(self) -> bool:
        """False: it is for files."""
        return False
