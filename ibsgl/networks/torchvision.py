"""torchvision's ResNets and VGGs, with random weights or torchvision's ImageNet weights."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ibsgl.networks.family import Family
from ibsgl.networks.split import IMAGENET_MEAN, IMAGENET_STD, SplitNetwork

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

TORCHVISION_NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
)


def _weights_enum(arch: str, weights: str) -> WeightsEnum:
    from torchvision import models

    known = models.get_model_weights(arch)
    if weights == "imagenet":
        return known.DEFAULT
    if weights not in known.__members__:
        raise ValueError(
            f"weights: torchvision has {', '.join(entry.name for entry in known)} for {arch}, not {weights}"
        )
    return known[weights]


def _torchvision_model(arch: str, num_classes: int, weights: str | None) -> nn.Module:
    """torchvision's network. It has as many classes as its weights, or ``num_classes`` without weights."""
    # Imported here, because torchvision's import takes seconds, and the jobs of small networks do not need it.
    from torchvision import models

    if weights is None:
        return models.get_model(arch, weights=None, num_classes=num_classes)
    pretrained = _weights_enum(arch, weights)
    try:
        return models.get_model(arch, weights=pretrained)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{arch}: torchvision's ImageNet weights could not be downloaded or read ({reason}); put the file "
            f"{pretrained.url} as {pretrained.url.rpartition('/')[2]} into {torch.hub.get_dir()}/checkpoints by hand"
        ) from error


def split_torchvision(
    arch: str, model: nn.Module, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> SplitNetwork:
    """Split torchvision's ResNet or VGG at its last convolutional feature map.

    Args:
        arch: the network's name, which decides where it is split.
        model: the network.
        mean, std: normalisation of each colour channel of the input.
    """
    part = model.get_submodule
    if arch.startswith("resnet"):
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        stem = nn.Sequential(OrderedDict((name, part(name)) for name in parts))
        head = nn.Sequential(OrderedDict(avgpool=part("avgpool"), flatten=nn.Flatten(), fc=part("fc")))
        name = "layer4"
        stages = ["relu", "layer1", "layer2", "layer3", "layer4"]
        # The first block of a layer has its stride.
        reduced = ["maxpool", "layer2.0", "layer3.0", "layer4.0", "layer4"]
    else:
        features = part("features")
        assert isinstance(features, nn.Sequential), f"{arch} has no sequence of features"
        stem = features[:-1]
        head = nn.Sequential(
            OrderedDict(pool=features[-1], avgpool=part("avgpool"), flatten=nn.Flatten(), classifier=part("classifier"))
        )
        blocks = sum(isinstance(module, nn.MaxPool2d) for module in features)
        convolutions = 0
        for module in stem:
            convolutions = 0 if isinstance(module, nn.MaxPool2d) else convolutions + isinstance(module, nn.Conv2d)
        name = f"conv{blocks}_{convolutions}"
        pools = [place for place, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
        stages = [str(place - 1) for place in pools]
        reduced = [*map(str, pools[:-1]), "head.pool"]
    return SplitNetwork(stem, head, name, mean=mean, std=std, stages=stages, reduced=reduced)


def _last_layer(arch: str, model: nn.Module) -> str:
    """The name of the layer that gives the logits."""
    if arch.startswith("resnet"):
        return "fc"
    classifier = model.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential), f"{arch} has no sequence of linear layers"
    return f"classifier.{len(classifier) - 1}"


class TorchvisionFamily(Family):
    """torchvision's networks, with torchvision's names. They take no options."""

    named_weights = True

    def handles(self, arch: str, source: str) -> bool:
        """Whether ``arch`` is one of torchvision's networks and ``source`` is ``torchvision``."""
        return arch in TORCHVISION_NETWORKS and source == "torchvision"

    def check(self, arch: str, weights: str | None, options: Mapping[str, object], *, multilabel: bool) -> None:
        """Check that there are no options and that torchvision has the weights."""
        if options:
            raise ValueError(f"options: {arch} takes none, not {', '.join(options)}")
        if weights is not None and weights != "imagenet":
            _weights_enum(arch, weights)

    def build(
        self, arch: str, num_classes: int, weights: str | None, options: Mapping[str, object], *, new_classes: bool
    ) -> SplitNetwork:
        """The network with random weights, or with torchvision's, which are downloaded once."""
        model = _torchvision_model(arch, num_classes, weights)
        name = _last_layer(arch, model)
        last = model.get_submodule(name)
        assert isinstance(last, nn.Linear), f"the last layer of {arch} is not linear"
        if last.out_features != num_classes:
            if not new_classes:
                raise ValueError(
                    f"weights: {weights} has {last.out_features} classes and the data {num_classes}, so the last layer would "
                    "be new and never trained; set classifier.epochs to 1 or more"
                )
            model.set_submodule(name, nn.Linear(last.in_features, num_classes))
        return split_torchvision(arch, model)

    def smallest_side(self, arch: str) -> int:
        """A VGG halves its image five times, without padding."""
        return 32 if arch.startswith("vgg") else 16

    def describe(self, arch: str) -> str:
        """The network's name and source."""
        return f"torchvision's {arch}"

    def original_name(self, arch: str, key: str) -> str:
        """torchvision's name of the parameter that is ``key`` in the network of :func:`split_torchvision`."""
        features = "" if arch.startswith("resnet") else "features."
        if key.startswith("stem.backbone."):
            return features + key.removeprefix("stem.backbone.")
        return key.removeprefix("head.")
