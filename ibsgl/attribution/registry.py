"""The interface of a saliency method, and the registry of methods.

A method is a frozen dataclass. Its fields are its settings. It is registered in the entry-point group ``ibsgl.attributions``,
so another package can add a method without a change in this repository.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Protocol

import torch

from ibsgl.attribution.cost import passes_per_map
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import Generators
from ibsgl.registry import Registry

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


METHODS: Registry[Attribution] = Registry(GROUP, "saliency method")


def names() -> list[str]:
    """Every registered method, sorted."""
    return METHODS.names()


def module_of(name: str) -> str:
    """The module in which the method ``name`` is defined. It is not imported."""
    return METHODS.module_of(name)


def requirements(name: str) -> frozenset[str]:
    """The further arguments that the method ``name`` needs; see :class:`Attribution`."""
    return METHODS.load(name).requires


@cache
def is_single_pass(name: str) -> bool:
    """Whether the method ``name`` with its default settings needs at most one forward and one backward pass."""
    try:
        method = get(name)
    except (ValueError, TypeError):
        # One of its settings has no default.
        return False
    passes = passes_per_map(method, CHANNELS)
    return passes is not None and passes <= 1


def get(name: str, **params: object) -> Attribution:
    """The method ``name`` with the settings ``params``. ``ValueError`` names an unknown method or a wrong setting."""
    return METHODS.get(name, **params)
