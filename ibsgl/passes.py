"""What a saliency method costs, in passes through the two parts of a :class:`ibsgl.network.SplitNetwork`.

A method says it of itself (``cost``), beside the code that runs the passes; :mod:`ibsgl.plan` multiplies.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Passes:
    """One number for each part and direction: how often one image passes there, or what one such pass costs.

    Backward passes are those that give the gradient of the part's input, its weights being fixed.
    """

    stem: float = 0
    head: float = 0
    stem_backward: float = 0
    head_backward: float = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Passes:
        return Passes(*(times * number for number in astuple(self)))

    def at(self, price: Passes) -> float:
        """The price of all of them, ``price`` being that of one of each kind."""
        return sum(number * each for number, each in zip(astuple(self), astuple(price), strict=True))


@dataclass(frozen=True)
class Cost:
    """The passes of a method: for every (image, class) pair, for every image whatever its classes, for every batch.

    ``mixed`` says that they run in mixed precision where :func:`ibsgl.network.autocast` does something, ``at_most`` that some
    may not be needed.
    """

    pair: Passes = Passes()
    image: Passes = Passes()
    batch: Passes = Passes()
    mixed: bool = False
    at_most: bool = False
