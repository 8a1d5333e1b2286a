"""The interface of a saliency method, the registry of methods, and the rows of a config.

A method is a frozen dataclass. Its fields are its settings. It is registered in the entry-point group ``ibsgl.attributions``,
so another package can add a method without a change in this repository. A row of the tables has a name of its own: with
``use`` it is computed by any registered method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import torch

from ibsgl.attribution.cost import Cost, cost_of, passes_per_map
from ibsgl.networks.passes import Precision, fast_passes
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
    backward pass share a job. If the cost depends on the network's other stages too, the method also has ``stage_cost(stages:
    StageChannels) -> Cost``, which the plan takes instead.

    A method may also have ``coarse``, with the arguments of ``__call__``: it returns the maps (B,h,w) at the size of the
    feature map, and ``__call__`` returns ``ibsgl.networks.upsample(coarse(…), (H, W))``. Then the small maps are stored, and
    resized when they are read. The result is equal to the bit. Without ``coarse``, maps are stored at the image's size.

    A method of another library has a class attribute ``library``: the distribution that computes its maps, such as
    ``grad-cam``. Another version of that distribution computes the maps again.
    """

    @property
    def requires(self) -> frozenset[str]:
        """A class attribute: it is read before the settings are known."""
        ...

    @property
    def label(self) -> str:
        """The name in tables: a class attribute, or a property where it depends on the settings."""
        ...

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


def library_of(name: str) -> str | None:
    """The distribution that computes the maps of the method ``name``; ``None`` for a method that computes them itself."""
    return getattr(METHODS.load(name), "library", None)


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


def is_coarse(name: str) -> bool:
    """Whether the maps of the method ``name`` are stored at the size of the feature map; see :class:`Attribution`."""
    return _has_coarse(METHODS.load(name))


def _has_coarse(kind: type) -> bool:
    """Whether ``coarse`` belongs to the class's own ``__call__``. A subclass with another ``__call__`` has other maps."""
    defines = next((base for base in kind.__mro__ if "__call__" in vars(base)), kind)
    return "coarse" in vars(defines)


# Keys of a row that are no settings of its method.
USE, LABEL = "use", "label"


def method_of(row: str, settings: Mapping[str, Any]) -> str:
    """The registered method that computes the row ``row``: its ``use``, or else its own name."""
    return str(settings.get(USE, row))


@dataclass(frozen=True)
class Row:
    """A row of the tables: a method with its settings, under a name of the config's own. It is called as the method is.

    Attributes:
        method: what computes the maps.
        use: the name under which the method is registered. Random draws are seeded by it, not by the row's name, so two rows
            of one method differ in their settings alone.
        label: the name in tables.
        precision: of the passes that the method states as mixed; see :class:`ibsgl.attribution.Cost`.
    """

    method: Attribution
    use: str
    label: str
    precision: Precision = "float32"

    @property
    def requires(self) -> frozenset[str]:
        """Those of the method."""
        return self.method.requires

    def __call__(self, network: SplitNetwork, images: torch.Tensor, *args: Any, **context: Any) -> torch.Tensor:
        """The method's maps."""
        with fast_passes(network, images.shape, self.precision):
            return self.method(network, images, *args, **context)

    def stored(self, network: SplitNetwork, images: torch.Tensor, *args: Any, **context: Any) -> torch.Tensor:
        """The method's maps as they are stored; see :func:`stored_form`."""
        with fast_passes(network, images.shape, self.precision):
            return stored_form(self.method)(network, images, *args, **context)


def stored_form(method: Attribution) -> Callable[..., torch.Tensor]:
    """What computes the maps of ``method`` that are stored: its ``coarse``, or the method itself."""
    if isinstance(method, Row):
        return method.stored
    return method.coarse if _has_coarse(type(method)) else method  # type: ignore[attr-defined]


def row(name: str, settings: Mapping[str, Any], precision: Precision = "float32") -> Row:
    """The row ``name`` of a config with the keys ``settings``: ``use``, ``label``, and the settings of the method.

    Without ``label`` a row has the label of its method. The row's name stands behind it if the method has another name:
    "RISE (rise_2000)". Labels of methods of other libraries have what computes them in them already.

    Raises:
        ValueError: an unknown method, a wrong setting, or a name of one registered method for another one.
    """
    use, label = method_of(name, settings), settings.get(LABEL)
    if use != name and name in names():
        raise ValueError(f"this name is that of a registered method, so it cannot use {use}; take another name")
    if label is not None and not (isinstance(label, str) and label.strip() and label.isprintable()):
        raise ValueError(f"{LABEL}: this is the name in tables, a text of one line (it is {label!r})")
    method = get(use, **{key: value for key, value in settings.items() if key not in (USE, LABEL)})
    plain = use == name or library_of(use) is not None
    return Row(method, use, label or (method.label if plain else f"{method.label} ({name})"), precision)


def mixed_cost(name: str, settings: Mapping[str, Any]) -> Cost | None:
    """The cost of the row ``name`` on a typical network, if its passes are in the run's precision; otherwise ``None``."""
    cost = cost_of(row(name, settings).method, CHANNELS)
    return cost if cost is not None and cost.mixed else None


def library_versions(name: str) -> dict[str, str]:
    """The installed version of the library that computes the maps of the method ``name``; empty if there is none."""
    library = library_of(name)
    return {library: version(library)} if library else {}
