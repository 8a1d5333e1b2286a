"""What a config names and other packages may add: methods, metrics, teachers, guidance losses.

Each kind has an entry-point group. An entry is a class, whose fields are its settings, or a function that takes the settings.
So another package adds an entry without a change in this repository.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

T = TypeVar("T")


class SettingError(ValueError):
    """A setting with a wrong value."""

    def __init__(self, key: str, reason: str, value: object):
        super().__init__(f"{key}: {reason}" if key else reason)
        self.key, self.reason, self.value = key, reason, value


class Registry(Generic[T]):
    """The entries of one entry-point group.

    Args:
        group: the group, such as ``ibsgl.attributions``.
        kind: what messages call an entry, such as ``saliency method``. Its last word is the short form.
    """

    def __init__(self, group: str, kind: str):
        self.group, self.kind = group, kind

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        # Reading the metadata of every installed package takes some milliseconds.
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._entries)

    def _entry(self, name: str) -> EntryPoint:
        if name not in self._entries:
            raise ValueError(f"no {self.kind} {name!r}; registered are {', '.join(self.names())}")
        return self._entries[name]

    def module_of(self, name: str) -> str:
        """The module in which the entry ``name`` is defined. It is not imported."""
        return self._entry(name).module

    def load(self, name: str) -> Any:
        """The class or function of the entry ``name``. ``ValueError`` names an unknown one."""
        return self._entry(name).load()

    def get(self, name: str, **settings: object) -> T:
        """The entry ``name`` with its settings. ``ValueError`` names an unknown entry, or a wrong setting."""
        factory = self.load(name)
        known = signature(factory).parameters
        for key in settings:
            if key not in known:
                short = self.kind.rpartition(" ")[2]
                raise ValueError(f"{short} {name!r} has no setting {key!r}; its settings: {', '.join(known) or 'none'}")
        if not is_dataclass(factory) and not (isinstance(factory, type) and issubclass(factory, BaseModel)):
            return factory(**settings)
        try:
            return TypeAdapter(factory).validate_python(settings)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise SettingError(key, problem["msg"].removeprefix("Value error, "), problem["input"]) from None
