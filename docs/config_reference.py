"""Write the tables of config/README.md from the code: ``python docs/config_reference.py``.

Keys, allowed values, defaults and meanings come from the config's schema and from the docstrings of the saliency methods. With
``--check`` no file is written, and the exit status is 1 if a table in the file differs from the code.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ibsgl import attribution
from ibsgl.config.schema import Config, Model
from ibsgl.data.sources import DEFAULT, SOURCES, DataSource
from ibsgl.guidance.registry import LOSSES, PAPER
from ibsgl.metrics import further
from ibsgl.metrics.further.registry import FURTHER
from ibsgl.settings import LARGEST

README = Path(__file__).parents[1] / "config" / "README.md"
# A generated part stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
TABLE = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
# Methods of this package are documented here. Methods of other installed packages are not.
OWN_PACKAGE = "baselines."
# Those of other libraries, by the modules that adapt them.
ADAPTERS = "ibsgl.attribution.adapters."
METRICS_PACKAGE = "ibsgl.metrics."

# Key, values, default, meaning.
Row = tuple[str, str, str, str]


def _bounds(metadata: list[Any]) -> dict[str, float]:
    """The limits ``ge``, ``gt``, ``le`` and ``lt`` of a field, without the one that all numbers have."""
    return {
        name: limit
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if (limit := getattr(item, name, None)) not in (None, LARGEST)
    }


def _number(kind: str, bounds: Mapping[str, float]) -> str:
    low = next((f"{bounds[name]:g} {sign} " for name, sign in (("ge", "≤"), ("gt", "<")) if name in bounds), "")
    high = next((f" {sign} {bounds[name]:g}" for name, sign in (("le", "≤"), ("lt", "<")) if name in bounds), "")
    if low and high:
        return f"{low}x{high}"
    if low:
        return f"{kind} {'≥' if 'ge' in bounds else '>'} {bounds.get('ge', bounds.get('gt')):g}"
    return f"{kind}{high}"


def values(annotation: Any, metadata: list[Any] | None = None) -> str:
    """The values that a type allows, in words: "integer ≥ 1", "0 < x < 1", or names in backticks."""
    metadata = metadata or []
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, FieldInfo):
        return values(annotation.annotation, annotation.metadata)
    if origin is Annotated:
        inner = [part for item in arguments[1:] for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return values(arguments[0], [*inner, *metadata])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("`null`" if part is type(None) else values(part, metadata) for part in arguments)
    if origin in (list, tuple):
        inner = values(arguments[0])
        if not inner[0].isalpha():
            return f"list of numbers {inner}"
        kind, space, limits = inner.partition(" ")
        return f"list of {kind}s{space}{limits}"
    if origin in (dict, Mapping) and arguments[1] is not Any:
        return f"mapping: name to {values(arguments[1])}"
    if origin in (dict, Mapping):
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{word.value}`" for word in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if annotation is bool:
        return "`true`, `false`"
    if annotation is int:
        return _number("integer", _bounds(metadata))
    if annotation is float:
        return _number("number", _bounds(metadata))
    if annotation is str:
        return "string"
    raise TypeError(f"there are no words for the type {annotation!r}; add them to docs/config_reference.py")


def default(value: Any) -> str:
    """A default value as it is written in YAML, or "required"."""
    if value is PydanticUndefined or value is MISSING or value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside a type: of an optional section, or of a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _rows_of(
    section: type[BaseModel], prefix: str, instance: BaseModel | None = None, leave_out: tuple[str, ...] = ()
) -> Iterator[Row]:
    """One row for each key of ``section``, nested sections included. ``instance`` holds its defaults, if it has any."""
    for name, field in section.model_fields.items():
        if name in leave_out or field.exclude:
            continue
        key = prefix + name
        value = getattr(instance, name) if instance is not None else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            yield from _rows_of(type(value), f"{key}.", value)
            continue
        if not field.description:
            raise ValueError(f"{section.__name__}.{name} has no description; give the field one")
        yield key, values(field), default(value), field.description
        for inner in _models_in(field.annotation):
            yield from _rows_of(inner, f"{key}.")


def _of_section(name: str) -> list[Row]:
    """The rows of a section of the config. The section ``run`` holds the keys that stand at the top."""
    if name == "run":
        sections = tuple(key for key, field in Config.model_fields.items() if not field.description)
        return list(_rows_of(Config, "", leave_out=sections))
    instance = Config.model_fields[name].get_default(call_default_factory=True)
    return list(_rows_of(type(instance), f"{name}.", instance))


def _of_every_source() -> list[Row]:
    """The keys that every data source has."""
    rows = list(_rows_of(DataSource, "data.", leave_out=("source",)))
    names = ", ".join(f"`{name}`" for name in SOURCES)
    return [("data.source", names, default(DEFAULT), "the kind of data set"), *rows]


def _of_source(source: str) -> list[Row]:
    """The keys that only one data source has."""
    common = tuple(DataSource.model_fields)
    return list(_rows_of(SOURCES[source], "data.", leave_out=common))


def _arguments(docstring: str) -> dict[str, str]:
    """The entries of the section ``Args`` of a docstring. An entry for several names counts for each of them."""
    _, _, section = inspect.cleandoc(docstring).partition("\nArgs:\n")
    section = re.split(r"\n\S", section)[0]
    entries: dict[str, str] = {}
    for entry in re.split(r"\n {4}(?=\S)", f"\n{section}"):
        names, _, text = entry.partition(": ")
        text = " ".join(text.split()).replace("``", "`")
        entries |= {name.strip(): text for name in names.split(",")}
    return entries


def _own_methods() -> list[str]:
    """The saliency methods of this package that a config may list."""
    return [name for name in attribution.names() if attribution.module_of(name).startswith(OWN_PACKAGE)]


def _own_metrics() -> list[str]:
    """The further metrics of this package."""
    return [name for name in further.names() if further.module_of(name).startswith(METRICS_PACKAGE)]


def _of_methods() -> list[Row]:
    """The settings of the saliency methods: the fields of their dataclasses, which their docstrings describe."""
    return [row for name in _own_methods() for row in _of_class(attribution.METHODS.load(name), f"methods.{name}.")]


def _of_class(method: type, prefix: str) -> Iterator[Row]:
    """The settings of a method or metric: the fields of its class, which its docstring describes."""
    if issubclass(method, BaseModel):
        yield from _rows_of(method, prefix)
        return
    hints, meanings = get_type_hints(method, include_extras=True), {}
    # A variation of a method has the settings of its base class.
    for base in reversed(method.__mro__):
        meanings |= _arguments(base.__doc__ or "")
    for field in fields(method):
        if field.name not in meanings:
            raise ValueError(f"{method.__name__}.{field.name} is not described under Args in the class's docstring")
        value = field.default if field.default_factory is MISSING else field.default_factory()
        yield f"{prefix}{field.name}", values(hints[field.name]), default(value), meanings[field.name]


def _of_rows() -> list[Row]:
    """The keys of every row under ``methods``, and of those that a method of another library computes."""
    prefix = "methods.<row>."
    names = [name for name in attribution.names() if attribution.module_of(name).startswith(ADAPTERS)]
    uses = ", ".join(f"`{name}`" for name in names)
    rows = [
        (
            f"{prefix}use",
            "string",
            "the row's name",
            f"the method that computes the row: a registered one, also {uses}",
        ),
        (f"{prefix}label", "string", "the method's", "the name in tables. A row under another name has that behind it"),
    ]
    for name in names:
        for key, allowed, value, meaning in _of_class(attribution.METHODS.load(name), prefix):
            rows.append((key, allowed, value, f"with `use: {name}`: {meaning}"))
    return rows


def _of_further_metrics() -> list[Row]:
    """The settings of the further metrics."""
    return [row for name in _own_metrics() for row in _of_class(FURTHER.load(name), f"further_metrics.{name}.")]


def as_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, *cells in rows:
        lines.append("| " + " | ".join([f"`{key}`", *(cell.rstrip(".").replace("|", "\\|") for cell in cells)]) + " |")
    return "\n".join(lines)


def _sources_as_markdown() -> str:
    """A heading and a table for each data source, the default first."""
    parts = []
    for source in sorted(SOURCES, key=lambda name: (name != DEFAULT, name)):
        summary = inspect.cleandoc(SOURCES[source].__doc__ or "").partition("\n\n")[0].replace("``", "`")
        parts.append(f"### source: {source}\n\n{' '.join(summary.split())}\n\n{as_markdown(_of_source(source))}")
    return "\n\n".join(parts)


def _losses_as_markdown() -> str:
    """A heading and a table for each guidance loss of this package, but not the paper's own."""
    parts = []
    for name in LOSSES.names():
        loss = LOSSES.load(name)
        if name == PAPER or not loss.__module__.startswith("ibsgl."):
            continue
        summary = inspect.cleandoc(inspect.getmodule(loss).__doc__ or "").replace("\n\n", " ")
        boxes = f"Sees boxes: {'yes' if 'region' in loss.requires else 'no'}."
        rows = as_markdown(list(_rows_of(loss, "settings.")))
        parts.append(f"### loss: {name}\n\n{' '.join(summary.split())} {boxes}\n\n{rows}")
    return "\n\n".join(parts)


def tables() -> dict[str, str]:
    """Every generated part of the reference by its name, as Markdown."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Config.model_fields.items()}
    sections = ["run", *(name for name, value in defaults.items() if isinstance(value, BaseModel) and name != "data")]
    return {
        "data": as_markdown(_of_every_source()),
        "data sources": _sources_as_markdown(),
        "models": as_markdown(list(_rows_of(Model, "models.<name>."))),
        "methods": as_markdown(_of_methods()),
        "rows": as_markdown(_of_rows()),
        "guidance losses": _losses_as_markdown(),
        "further metrics": as_markdown(_of_further_metrics()),
        **{name: as_markdown(_of_section(name)) for name in sections},
    }


def rewritten(text: str) -> str:
    """``text`` with every table made anew.

    Raises:
        ValueError: a table of the reference is missing in ``text``, or ``text`` has one that the reference lacks.
    """
    known = tables()
    found = [match["name"] for match in TABLE.finditer(text)]
    if sorted(found) != sorted(known):
        missing, unknown = sorted(known.keys() - set(found)), sorted(set(found) - known.keys())
        raise ValueError(
            f"{README.name}: tables that are missing: {missing}; tables that are unknown or doubled: {unknown}"
        )
    return TABLE.sub(lambda match: f"{match[1]}\n{known[match['name']].strip()}\n\n{match[3]}", text)


def main() -> int:
    """Write the file, or with ``--check`` compare it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    new = rewritten(text)
    if new == text:
        return 0
    if check:
        print(f"{README}: the tables are out of date; run python docs/config_reference.py", file=sys.stderr)
        return 1
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
