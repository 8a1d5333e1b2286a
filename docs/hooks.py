"""A hook of mkdocs: the page ``config.md`` shows config/README.md, which lies outside of the folder of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "config" / "README.md"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page. In config/README.md the links to docs/ become links within the site."""
    if page.file.src_uri != "config.md":
        return markdown
    return README.read_text(encoding="utf-8").replace("](../docs/", "](")


def on_serve(server: Any, **_: Any) -> Any:
    """``mkdocs serve`` rebuilds the site when config/README.md changes."""
    server.watch(str(README))
    return server
