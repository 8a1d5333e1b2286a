"""The cost of a saliency method, in passes through the two parts of a :class:`ibsgl.networks.SplitNetwork`.

Each method defines its cost beside the code that runs the passes. :mod:`ibsgl.plan` multiplies it by the number of images.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Passes:
    """One number for each part of the network and each direction: a number of passes, or the cost of one pass.

    A backward pass computes the gradient of the part's input. Weights are fixed.
    """

    stem: float = 0
    head: float = 0
    stem_backward: float = 0
    head_backward: float = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Passes:
        return Passes(*(times * number for number in astuple(self)))

    def weighted_by(self, unit_cost: Passes) -> float:
        """The cost of all passes. ``unit_cost`` has the cost of one pass of each kind."""
        return sum(number * cost for number, cost in zip(astuple(self), astuple(unit_cost), strict=True))


@dataclass(frozen=True)
class Cost:
    """The passes of a method.

    Attributes:
        pair: for every (image, class) pair.
        image: for every image. Its classes share them.
        batch: for every batch.
        mixed: whether the passes run in :func:`ibsgl.networks.autocast`.
        at_most: whether some of the passes may not be needed.
    """

    pair: Passes = Passes()
    image: Passes = Passes()
    batch: Passes = Passes()
    mixed: bool = False
    at_most: bool = False


def passes_per_map(method: object, channels: int) -> float | None:
    """The most passes that one map makes through a part of the network in one direction. ``None``: the method has no cost.

    Args:
        method: a saliency method with its settings.
        channels: of the network's feature map.
    """
    if not hasattr(method, "cost"):
        return None
    cost: Cost = method.cost(channels)
    return max(astuple(cost.pair + cost.image + cost.batch))
