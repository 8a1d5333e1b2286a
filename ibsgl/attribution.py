"""The one verb that every saliency method speaks, and the registry through which methods are found.

A method is a (frozen) dataclass whose fields are its settings, registered under the entry-point group ``ibsgl.attributions``;
a third-party package adds one without touching this repository.
"""

from __future__ import annotations

from dataclasses import astuple, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import ClassVar, Protocol

import torch
from pydantic import TypeAdapter, ValidationError

from ibsgl.network import SplitNetwork
from ibsgl.randomness import Generators

GROUP = "ibsgl.attributions"
# Of some network's feature map, where only the order of a method's cost is asked.
CHANNELS = 64


class Attribution(Protocol):
    """A saliency method with its settings bound.

    ``label`` is the method's name in tables. ``requires`` names what it needs beyond images and targets, passed as keyword
    arguments: ``region`` ((B,H,W) bool, the target's boxes) or ``statistics`` (:class:`ibsgl.bottleneck.FeatureStatistics`).

    A method may also have ``cost(channels) -> ibsgl.passes.Cost``, its passes through a network whose feature map has so
    many channels; ``ibsgl plan`` calls the cost of one that does not unknown. Those that need one
    forward and one backward pass at most share a job.
    """

    label: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        **context,
    ) -> torch.Tensor:
        """Images (B,3,H,W) in [0,1] and targets (B,) int64 → saliency (B,H,W), finite and ≥ 0.

        ``generator``: one for the batch (every image gets the same draw) or one per image.
        """
        ...


def names() -> list[str]:
    """Every registered method, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def _entry_point(name: str) -> EntryPoint:
    points = entry_points(group=GROUP, name=name)
    if not points:
        raise ValueError(f"no saliency method {name!r}; registered are {', '.join(names())}")
    return next(iter(points))


def module_of(name: str) -> str:
    """The module that the method ``name`` is defined in, without importing it."""
    return _entry_point(name).module


def requirements(name: str) -> frozenset[str]:
    """What the method ``name`` needs beyond images and targets."""
    return _entry_point(name).load().requires


def is_light(name: str) -> bool:
    """Does the method ``name``, as it comes, need one forward and one backward pass at most?"""
    try:
        method = get(name)
    except (ValueError, TypeError):
        # It has a setting without a default.
        return False
    if not hasattr(method, "cost"):
        return False
    cost = method.cost(CHANNELS)
    return max(astuple(cost.pair + cost.image + cost.batch)) <= 1


def get(name: str, **params: object) -> Attribution:
    """The method ``name`` with settings ``params``; ``ValueError`` names an unknown method or setting."""
    method = _entry_point(name).load()
    known = signature(method).parameters
    for key in params:
        if key not in known:
            settings = ", ".join(known) or "none"
            raise ValueError(f"method {name!r} has no setting {key!r}; its settings: {settings}")
    if not is_dataclass(method):
        return method(**params)
    try:
        return TypeAdapter(method).validate_python(params)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}") from None
