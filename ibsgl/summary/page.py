"""The summary of a run as one HTML file: no script, no other file, no network."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path

from ibsgl.summary.results import Result


def page(name: str, found: Sequence[Result]) -> str:
    """The page with the claims and their verdicts, the tables and the figures.

    Args:
        name: the config's name.
        found: the results of :func:`ibsgl.summary.results`. For a result that is missing, the page gives its command.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections, details = [], None
    for result in found:
        text = result.text() or ""
        if result.key == "claims":
            # The answer and the verdicts stand first. The paragraphs about each claim are long and stand last.
            text, mark, rest = text.partition("\n## ")
            details = _html(mark + rest) if rest else None
        sections.append(
            {
                "title": result.title,
                "command": result.command,
                "made": _made(result),
                "text": _html(_without_title(text)),
                "images": [_data_uri(file) for file in result.files(".png")],
            }
        )
    return environment.get_template("page.html").render(name=name, sections=sections, details=details)


def _made(result: Result) -> str | None:
    if result.record is None:
        return None
    ended = time.localtime(result.record["started"] + result.record["seconds"])
    facts = result.record["tags"]
    return ", ".join(
        [
            time.strftime("%Y-%m-%d %H:%M", ended),
            f"commit {facts.get('commit', 'unknown')[:7]}{' with changes' if facts.get('dirty') else ''}",
            *([f"data {facts['data_digest'][:12]}"] if facts.get("data_digest") else []),
        ]
    )


def _without_title(text: str) -> str:
    """``text`` without a first line that is a title: the page has its own."""
    first, _, rest = text.partition("\n")
    return rest if first.startswith("# ") else text


def _html(text: str) -> str:
    """Markdown as HTML. Everything in it is text: tags are escaped, and there are neither links nor images."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
    # The only tag that the tables use. It underlines the second best value.
    return parser.render(text).replace("&lt;u&gt;", "<u>").replace("&lt;/u&gt;", "</u>")


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
