"""The cost of a saliency method, in passes through the two parts of a :class:`ibsgl.networks.SplitNetwork`.

Each method defines its cost beside the code that runs the passes. :mod:`ibsgl.plan` multiplies it by the number of images.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch

from ibsgl.networks.split import SplitNetwork, evaluating


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
        mixed: whether the passes run in the run's ``precision``, by :func:`ibsgl.networks.forward_pass` and
            :func:`ibsgl.networks.input_gradient`.
        within_bound: whether the mean change of the method's metrics by bf16 in the mixed passes was within the bound in
            ``docs/speed.md``. Then ``precision: auto`` uses it.
        at_most: whether some of the passes may not be needed.
    """

    pair: Passes = Passes()
    image: Passes = Passes()
    batch: Passes = Passes()
    mixed: bool = False
    within_bound: bool = False
    at_most: bool = False


@dataclass(frozen=True)
class StageChannels:
    """The channels of the maps that :meth:`ibsgl.networks.SplitNetwork.stage_maps` returns, the largest map first.

    Both are empty if the network has no stages.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def stage_channels(network: SplitNetwork, image_size: int) -> StageChannels:
    """The channels of the stages' maps. ``network`` may be on the meta device."""
    images = torch.rand(1, 3, image_size, image_size, device=next(network.parameters()).device)
    with evaluating(network), torch.no_grad():
        return StageChannels(
            *(
                tuple(maps.shape[1] for maps in network.stage_maps(images, layers)[0]) if known else ()
                for layers, known in (("before", network.stages), ("after", network.reduced))
            )
        )


def cost_of(method: Any, channels: int, stages: StageChannels | None = None) -> Cost | None:
    """The cost of a saliency method on a network. ``None``: the method does not state it.

    Args:
        method: with its settings.
        channels: of the network's feature map.
        stages: the channels of the network's stages, if they are known.

    Raises:
        ValueError: the method cannot run on a network with these stages.
    """
    if stages is not None and hasattr(method, "stage_cost"):
        return method.stage_cost(stages)
    return method.cost(channels) if hasattr(method, "cost") else None


def passes_per_map(method: Any, channels: int, stages: StageChannels | None = None) -> float | None:
    """The most passes that one map makes through a part of the network in one direction; see :func:`cost_of`."""
    cost = cost_of(method, channels, stages)
    return None if cost is None else max(astuple(cost.pair + cost.image + cost.batch))
