"""The note of a run: the answer in sentences, and as much of Tables 1–4 as there is room for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ibsgl.summary.results import Result

_CAPTION = 120
_MORE = "More is in the artifact `summary.html`; each table is also a run of its own."


def note(found: Sequence[Result], limit: int) -> str:
    """Markdown with the answer and the tables.

    Args:
        found: the results of :func:`ibsgl.summary.results`.
        limit: the largest number of characters. Each table gets an equal share of what the answer leaves: its first rows.
    """
    by_key = {result.key: result for result in found}
    answer = _answer(by_key["claims"]) if "claims" in by_key else ""
    parts = [_cut(answer, limit // 2), _MORE]
    tables = [result for result in found if result.key.startswith("table")]
    # Two characters separate a part from the next.
    room = limit - sum(len(part) + 2 for part in parts)
    for place, result in enumerate(tables):
        table = _table(result, room // (len(tables) - place) - 2)
        room -= len(table) + 2
        parts.insert(-1, table)
    return "\n\n".join(part for part in parts if part)[:limit]


def _missing(result: Result) -> str:
    return f"{result.title}: not made yet with this config. Make it with `{result.command}`."


def _answer(result: Result) -> str:
    """The sentences below the title of claims.md."""
    blocks = (result.text() or "").split("\n\n")
    return blocks[1] if len(blocks) > 1 else _missing(result)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 2]} …"


def _table(result: Result, limit: int) -> str:
    """Caption and first rows of a table of ``limit`` characters. Rows of methods that were not run are left out."""
    text = result.text()
    if text is None:
        return _missing(result)
    caption, _, rest = text.partition("\n\n")
    heading, rule, *rows = rest.partition("\n\n")[0].splitlines()
    lines = [textwrap.shorten(caption, _CAPTION, placeholder=" …"), "", heading, rule]
    kept = [row for row in rows if "| not run |" not in row]
    while kept and len("\n".join(lines)) + 1 + len(kept[0]) <= limit:
        lines.append(kept.pop(0))
    return "\n".join(lines)
