"""An extension of griffe: docstrings of this project use Sphinx's roles and double backticks, and the site reads Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
_LITERAL_BLOCK = re.compile(r"::\n(?=\n {4})")


def as_markdown(text: str) -> str:
    """The docstring ``text`` in Markdown: ``:func:`name``` becomes `` `name` ``, and ``::`` before a code block a colon."""
    return _LITERAL_BLOCK.sub(":\n", _ROLE.sub(r"`\1`", text))


class SphinxRoles(Extension):
    """Translates every docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Translate the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
