"""The interface of a saliency method, and the registry of methods.

A method is a frozen dataclass. Its fields are its settings. It is registered in the entry-point group ``ibsgl.attributions``,
so another package can add a method without a change in this repository.
"""

from __future__ import annotations

from dataclasses import astuple, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError

from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import Generators

GROUP = "ibsgl.attributions"
# Channels of a typical feature map, for places where only the order of magnitude of a method's cost matters.
CHANNELS = 64


class Attribution(Protocol):
    """A saliency method with its settings.

    ``label`` is the method's name in tables. ``requires`` has the names of the further keyword arguments that the method needs:
    ``region`` ((B,H,W) bool, the target's boxes) or ``statistics`` (:class:`ibsgl.bottleneck.FeatureStatistics`).

    A method may also have ``cost(channels) -> ibsgl.attribution.cost.Cost``: its passes through a network whose feature map
    has ``channels`` channels. Without it ``ibsgl plan`` prints "unknown". Methods that need at most one forward and one
    backward pass share a job.
    """

    label: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        # For type checkers: with both, a method may have any further arguments.
        *args: Any,
        **context: Any,
    ) -> torch.Tensor:
        """Images (B,3,H,W) in [0,1] and targets (B,) int64 → saliency (B,H,W), finite and ≥ 0.

        ``generator``: one for the batch, so that every image gets the same draw, or one per image.
        """
        ...


@cache
def _entry_points() -> dict[str, EntryPoint]:
    # Reading the metadata of every installed package takes some milliseconds.
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Every registered method, sorted."""
    return sorted(_entry_points())


def _entry_point(name: str) -> EntryPoint:
    if name not in _entry_points():
        raise ValueError(f"no saliency method {name!r}; registered are {', '.join(names())}")
    return _entry_points()[name]


def module_of(name: str) -> str:
    """The module in which the method ``name`` is defined. It is not imported."""
    return _entry_point(name).module


def requirements(name: str) -> frozenset[str]:
    """The further arguments that the method ``name`` needs; see :class:`Attribution`."""
    return _entry_point(name).load().requires


@cache
def is_single_pass(name: str) -> bool:
    """Whether the method ``name`` with its default settings needs at most one forward and one backward pass."""
    try:
        method = get(name)
    except (ValueError, TypeError):
        # One of its settings has no default.
        return False
    if not hasattr(method, "cost"):
        return False
    cost = method.cost(CHANNELS)
    return max(astuple(cost.pair + cost.image + cost.batch)) <= 1


def get(name: str, **params: object) -> Attribution:
    """The method ``name`` with the settings ``params``. ``ValueError`` names an unknown method or a wrong setting."""
    factory = _entry_point(name).load()
    known = signature(factory).parameters
    for key in params:
        if key not in known:
            settings = ", ".join(known) or "none"
            raise ValueError(f"method {name!r} has no setting {key!r}; its settings: {settings}")
    if not is_dataclass(factory) and not (isinstance(factory, type) and issubclass(factory, BaseModel)):
        return factory(**params)
    try:
        return TypeAdapter(factory).validate_python(params)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}") from None
