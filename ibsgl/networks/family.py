"""The base class of network families. A family checks arguments, builds networks and renames state dicts from elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from ibsgl.networks.split import SplitNetwork


class Family(ABC):
    """A family of networks. A subclass implements :meth:`handles`, :meth:`check` and :meth:`build`.

    Attributes:
        named_weights: whether the family has weights with a name, such as ``imagenet``.
        needs_file: whether the weights must come from a file.
        builds_on_meta: whether a network can be built on torch's meta device, where tensors have no memory.
    """

    named_weights: ClassVar[bool] = False
    needs_file: ClassVar[bool] = False
    builds_on_meta: ClassVar[bool] = True

    @abstractmethod
    def handles(self, arch: str, source: str) -> bool:
        """Whether ``arch`` from ``source`` is a network of this family."""

    @abstractmethod
    def check(self, arch: str, weights: str | None, options: Mapping[str, object], *, multilabel: bool) -> None:
        """Raise ``ValueError`` or ``TypeError`` if :meth:`build` cannot use these arguments.

        The message begins with the argument's name and a colon. No memory is needed for weights.
        """

    @abstractmethod
    def build(
        self, arch: str, num_classes: int, weights: str | None, options: Mapping[str, object], *, new_classes: bool
    ) -> SplitNetwork:
        """The network with ``num_classes`` logits.

        Args:
            arch: the network's name.
            num_classes: number of logits.
            weights: a name (``named_weights``), or ``None``.
            options: further arguments of the network.
            new_classes: whether weights for another number of classes are accepted. The last layer is then a new one.
        """

    def smallest_side(self, arch: str) -> int:
        """The smallest side of a square image, in pixels, that the network takes."""
        return 16

    def check_classes(self, class_names: Sequence[str]) -> None:  # noqa: B027
        """Raise ``ValueError`` if the network's logits do not stand for ``class_names`` in this order."""

    def describe(self, arch: str) -> str:
        """The network's name and source, for messages and notes."""
        return arch

    def modules(self, arch: str) -> tuple[str, ...]:
        """Modules outside ``ibsgl`` that the network depends on."""
        return ()

    def rename_state(self, arch: str, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """A state dict of the family's original network, with the names that :meth:`original_name` returns."""
        return state

    def original_name(self, arch: str, key: str) -> str:
        """The original network's name of the parameter that is ``key`` in the :class:`SplitNetwork`."""
        return key
