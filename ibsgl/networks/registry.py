"""The families of networks, and how a network is built from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from ibsgl.networks.factory import FactoryFamily
from ibsgl.networks.family import Family
from ibsgl.networks.small import SMALL_NETWORKS, SmallFamily
from ibsgl.networks.split import SplitNetwork
from ibsgl.networks.torchray import TorchRayFamily
from ibsgl.networks.torchvision import TORCHVISION_NETWORKS, TorchvisionFamily
from ibsgl.networks.weights import load_state, read_state
from ibsgl.settings import Settings

# The first family that handles a network builds it.
FAMILIES: tuple[Family, ...] = (TorchRayFamily(), FactoryFamily(), SmallFamily(), TorchvisionFamily())


def family_of(arch: str, source: str = "torchvision") -> Family:
    """The family that builds ``arch``; ``ValueError`` if there is none."""
    for family in FAMILIES:
        if family.handles(arch, source):
            return family
    known = ", ".join([*SMALL_NETWORKS, *TORCHVISION_NETWORKS])
    raise ValueError(f"arch: {arch!r} is unknown; take one of {known}, or your own as package.module:function")


def named_weights(weights: object) -> str | None:
    """``weights`` if it is a name of torchvision's weights (``imagenet``, ``IMAGENET1K_…``), ``None`` if it is a path."""
    return str(weights) if weights == "imagenet" or str(weights).startswith("IMAGENET1K_") else None


class NetworkSettings(Settings):
    """The settings of one network. ``multilabel`` is that of the data set."""

    arch: str = Field(
        description="`resnet_small`, `vgg_small`; torchvision's `resnet18` … `resnet152` and `vgg11` … `vgg19` (also "
        "`_bn`); or a function of your own as `package.module:function`"
    )
    source: Literal["torchvision", "torchray"] = Field(
        "torchvision",
        description="whose `resnet50` and `vgg16`: torchvision's, or TorchRay's, which were converted from Caffe",
    )
    weights: str | None = Field(
        None,
        description="where training starts: `null` (random, or what the factory returns), `imagenet` (torchvision's "
        "newest), a name such as `IMAGENET1K_V1`, or the path of a state dict",
    )
    options: dict[str, Any] = Field(
        {},
        description="further arguments of a small network (`width: 16`; `resnet_small` needs at least 8) or of the factory",
    )
    image_size: int = Field(224, ge=16, le=4096, description="side of the square input, in pixels")
    multilabel: bool = False

    @property
    def family(self) -> Family:
        """The family that builds this network."""
        return family_of(self.arch, self.source)

    @property
    def weights_file(self) -> str | None:
        """The file that training starts from, or ``None`` if it starts from something else."""
        return None if self.weights is None or named_weights(self.weights) else self.weights

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules outside ``ibsgl`` that the network depends on."""
        return self.family.modules(self.arch)

    def check(self) -> None:
        """Raise ``ValueError`` if :meth:`build` cannot use these settings. The message begins with the key."""
        family = self.family
        if family.needs_file and self.weights is None:
            raise ValueError(f"weights: give the file of {family.describe(self.arch)}")
        family.check(self.arch, named_weights(self.weights), self.options, multilabel=self.multilabel)
        if self.image_size < (smallest := family.smallest_side(self.arch)):
            raise ValueError(f"image_size: {self.arch} needs at least {smallest} pixels, not {self.image_size}")

    def build(self, num_classes: int, weights: str | Path | None = None, *, new_classes: bool = False) -> SplitNetwork:
        """The network with the weights in the file ``weights``, or without one with those of :attr:`weights`."""
        return build_network(
            self.arch,
            num_classes,
            weights or self.weights,
            multilabel=self.multilabel,
            source=self.source,
            new_classes=new_classes,
            **self.options,
        )


def build_network(
    arch: str,
    num_classes: int,
    weights: str | Path | None = None,
    *,
    multilabel: bool = False,
    source: str = "torchvision",
    new_classes: bool = True,
    **kw: Any,
) -> SplitNetwork:
    """A :class:`SplitNetwork` with ``num_classes`` logits.

    Args:
        arch: ``resnet_small``, ``vgg_small``, a torchvision ResNet or VGG by its name, or ``package.module:factory``.
        num_classes: number of logits K.
        weights: ``None`` (random, from torch's global generator), ``"imagenet"`` (torchvision's newest), a name such as
            ``"IMAGENET1K_V1"``, or the path of a state dict. The state dict is that of this network. For a network of
            torchvision it may also be torchvision's own, or TorchRay's, as ``source`` has it.
        multilabel: sets :attr:`SplitNetwork.multilabel`.
        source: ``"torchvision"``, or ``"torchray"`` for TorchRay's ``resnet50`` and ``vgg16``
            (:mod:`ibsgl.networks.torchray`).
        new_classes: whether weights for another number of classes are accepted. The last layer is then a new one.
        kw: further arguments of a small network, or of the factory, which is called as ``factory(num_classes, **kw)``.

    Raises:
        ValueError: an argument or ``weights`` does not fit. The message is one line.
    """
    family, named = family_of(arch, source), named_weights(weights)
    # TorchRay's networks must be multi-label in a run. Here they may be built for single-label data too.
    family.check(arch, named, kw, multilabel=True)
    network = family.build(arch, num_classes, named, kw, new_classes=new_classes)
    if weights is not None and not named:
        _load_file(network, family, arch, Path(weights), new_classes)
    network.multilabel = multilabel
    return network.to(memory_format=torch.channels_last)


def _load_file(network: SplitNetwork, family: Family, arch: str, path: Path, new_classes: bool) -> None:
    state: Mapping[str, torch.Tensor] = read_state(path)
    names = {key: key for key in network.state_dict()}
    if not any(key.startswith(("stem.", "head.")) for key in state):
        state = family.rename_state(arch, state)
        names = {key: family.original_name(arch, key) for key in names}
    load_state(network, state, path, names=names, network_name=family.describe(arch), new_classes=new_classes)
