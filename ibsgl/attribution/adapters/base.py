"""What the adapters share: a copy of the network for the library, the check of its arguments, signs and random draws."""

from __future__ import annotations

import copy
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ibsgl.extras import not_installed
from ibsgl.networks.split import SplitNetwork, check_batch
from ibsgl.randomness import Generators, draw
from ibsgl.settings import LARGEST

# What becomes of negative values.
Sign = Literal["absolute", "positive"]


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """A method of another library as a saliency method.

    The library gets a copy of the network, so what it leaves behind, such as hooks, gradients or another mode, is never in the
    network itself, also not after an error. The copy shares the memory of the weights. Methods that draw random numbers, and
    those whose passes hold many copies of an image, get one image at a time. Random numbers come from the image's generator.

    Args:
        arguments: arguments of the library, by name: numbers, texts, truth values, and lists of them.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    # The distribution, its package, and the extra of this project that installs it.
    library: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for key, value in self.arguments.items():
            _check_value(f"arguments.{key}", value)
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise ``ValueError`` unless the library is installed and has such a method with such arguments. Nothing is run."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The method, the library, and what becomes of negative values."""

    @property
    @abstractmethod
    def alone(self) -> bool:
        """Whether the library gets one image at a time."""

    @abstractmethod
    def maps(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The maps (B,H,W) ≥ 0 of ``images`` (B,3,H,W). ``network`` is a copy that the library may change."""

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) in [0,1] and targets (B,) int64 → saliency (B,H,W) ≥ 0.

        Raises:
            ValueError: the library does not accept a value of ``arguments``.
        """
        check_batch(images, targets)
        own = private_copy(network)
        seeds = draw(lambda g: torch.randint(2**31, (), generator=g, device=g.device), len(images), generator).tolist()
        step = 1 if self.alone else max(1, len(images))
        parts = [images[:0, 0]]
        with _quiet(), torch.enable_grad():
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                with _drawing_from(seeds[start], images.device):
                    try:
                        parts.append(self.maps(own, images[part].detach().clone(), targets[part]).detach())
                    except (TypeError, AssertionError) as error:
                        # The libraries check their arguments with assertions, or not at all.
                        reason = str(error).partition("\n")[0] or type(error).__name__
                        raise ValueError(f"{self.label}: {reason}; check its arguments") from error
        return torch.cat([part.to(images) for part in parts])


def private_copy(network: SplitNetwork) -> SplitNetwork:
    """``network`` in evaluation mode with modules and parameters of its own. They share the memory of the network's values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in network.buffers()}
    return copy.deepcopy(network, memo).eval()


def signed(maps: torch.Tensor, sign: Sign) -> torch.Tensor:
    """``absolute``: |maps|. ``positive``: max(maps, 0)."""
    return maps.abs() if sign == "absolute" else maps.relu()


def load(package: str, library: str, extra: str) -> ModuleType:
    """The module ``package``. ``ValueError`` names the extra that installs its library."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        missing = (
            library if (error.name or "") == package.partition(".")[0] else f"{error.name}, which {library} needs,"
        )
        raise not_installed(missing, extra) from None


def known(kind: str, name: str, methods: Collection[str], refused: Mapping[str, str]) -> None:
    """Raise ``ValueError`` unless ``name`` is one of ``methods``. ``refused`` has reasons by name."""
    if name in refused:
        raise ValueError(f"{kind} {name} is not possible: {refused[name]}")
    if name not in methods:
        raise ValueError(f"{kind} {name!r} is not known here; known are {', '.join(sorted(methods))}")


def sorted_arguments(
    arguments: Mapping[str, Any], what: str, functions: list[Callable[..., Any]], set_here: Collection[str]
) -> list[dict[str, Any]]:
    """``arguments`` by the function that takes each, with tuples for lists. The functions are not called.

    Args:
        arguments: by name.
        what: the method, for messages.
        functions: each argument belongs to the first that has it.
        set_here: parameters that the adapter sets, or that change the kind of the result. A config may not give them.

    Raises:
        ValueError: no function has such an argument, or one that is needed is not given.
    """
    free = [
        {
            name: parameter
            for name, parameter in signature(function).parameters.items()
            if name not in set_here and parameter.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        }
        for function in functions
    ]
    names = dict.fromkeys(name for parameters in free for name in parameters)
    for name in arguments:
        if name not in names:
            raise ValueError(f"arguments.{name}: {what} has no such argument; it has {', '.join(names) or 'none'}")
    for parameters in free:
        for name, parameter in parameters.items():
            if parameter.default is Parameter.empty and name not in arguments:
                raise ValueError(f"arguments.{name}: {what} needs this argument")
    taken: set[str] = set()
    found = []
    for parameters in free:
        own = {name: _tuples(arguments[name]) for name in parameters if name in arguments and name not in taken}
        taken |= own.keys()
        found.append(own)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        for part in value:
            _check_value(key, part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= LARGEST:
            raise ValueError(f"{key}: {value:g} is not a number of at most {LARGEST:g}")
    elif not (value is None or isinstance(value, bool | str)):
        raise ValueError(f"{key}: give a number, a text, true, false or a list of them, not {value!r}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside this block, a library's progress bars, prints and warnings are not shown."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside this block, the global generators of torch and NumPy start from ``seed``. After it they are as before."""
    before = np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed)
            yield
    finally:
        np.random.set_state(before)
