"""A user's own network. The config names the function that builds it, as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import ClassVar

from ibsgl.networks.family import Family
from ibsgl.networks.split import SplitNetwork


def load_factory(arch: str) -> Callable[..., SplitNetwork]:
    """The callable with the name ``package.module:function``. ``ValueError`` names the part that was not found."""
    module_name, _, function = arch.partition(":")
    if not module_name or not function:
        raise ValueError(f"arch: {arch!r} is not package.module:function")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(
            f"arch: {arch!r}: no module {module_name!r}; install its package, or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"arch: {arch!r}: module {module_name!r} has no function {function!r}") from error
    if not callable(factory):
        raise ValueError(f"arch: {arch!r}: {function!r} is not callable")
    return factory


class FactoryFamily(Family):
    """Factories: ``factory(num_classes, **options)`` returns a :class:`SplitNetwork`."""

    # A factory may read weights, and the meta device has no memory for them.
    builds_on_meta: ClassVar[bool] = False

    def handles(self, arch: str, source: str) -> bool:
        """Whether ``arch`` has a colon."""
        return ":" in arch

    def check(self, arch: str, weights: str | None, options: Mapping[str, object], *, multilabel: bool) -> None:
        """Check that the function exists and takes the options. It is not called, because it may download or read weights."""
        factory = load_factory(arch)
        if weights is not None:
            raise ValueError(
                f"weights: {weights!r} is a name of torchvision's weights; {arch} must load its own, for example from an option"
            )
        try:
            inspect.signature(factory).bind(2, **options)
        except TypeError as error:
            raise ValueError(f"options: {error}") from None

    def build(
        self, arch: str, num_classes: int, weights: str | None, options: Mapping[str, object], *, new_classes: bool
    ) -> SplitNetwork:
        """The network that the factory returns."""
        network = load_factory(arch)(num_classes, **options)
        if not isinstance(network, SplitNetwork):
            raise TypeError(f"{arch} returned {type(network).__name__}; it must return an ibsgl.networks.SplitNetwork")
        return network

    def modules(self, arch: str) -> tuple[str, ...]:
        """The factory's module."""
        return (arch.partition(":")[0],)
