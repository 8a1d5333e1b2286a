"""The data sources, one module each. A new module here with a :class:`DataSource` is found and can be used in a config."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from ibsgl.data.sources.base import Counts, DataSource, Split

DEFAULT = "shapes"


def _find() -> dict[str, type[DataSource]]:
    found: dict[str, type[DataSource]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, DataSource) and value is not DataSource:
                name = value.model_fields["source"].default
                if not isinstance(name, str):
                    raise TypeError(
                        f"{value.__module__}.{value.__name__}: give its name, like source: Literal['mine'] = 'mine'"
                    )
                found[name] = value
    return found


SOURCES: dict[str, type[DataSource]] = _find()


def _name(value: Any) -> str | None:
    return value.get("source", DEFAULT) if isinstance(value, Mapping) else getattr(value, "source", None)


if TYPE_CHECKING:
    AnySource = DataSource
else:
    # ``source`` names the class. Its fields are the keys under ``data``.
    AnySource = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in SOURCES.items())],  # noqa: UP007
        Discriminator(_name),
    ]

__all__ = ["DEFAULT", "SOURCES", "AnySource", "Counts", "DataSource", "Split"]
