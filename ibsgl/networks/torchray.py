"""The networks behind the published baseline values: TorchRay's VGG-16 and ResNet-50, converted from Caffe.

Zhang et al. (2018) fine-tuned them to VOC 2007 (and to COCO) for excitation backprop. They are multi-label, with a sigmoid per
class. TorchRay published them as ``vgg16_voc-b050e8c3.pth.tar`` and ``resnet50_voc-9ca920d6.pth.tar``. They differ from
torchvision's networks in three ways:

- Their input is BGR in 0…255, and only the mean is subtracted.
- The size of a pooled map is rounded up.
- On ResNet-50 the first convolution has a bias, the first pool has no padding, and a stage's stride is in its first 1×1
  convolution.

Here the input channels of the first convolution are in the order RGB, and the factor 255 is part of the normalisation. So these
networks take RGB in [0, 1] like all others. TorchRay can also run the classifier as convolutions over the map of a larger
image, with one row of logits per place. At 224×224 pixels there is one place, and its logits are those of this network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ibsgl.networks.split import SplitNetwork
from ibsgl.networks.torchvision import TorchvisionFamily, split_torchvision

TORCHRAY_NETWORKS = ("resnet50", "vgg16")
# Caffe's means of ImageNet's pixels, converted from BGR in 0…255 to RGB in [0, 1].
MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
STD = (1 / 255,) * 3
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# TorchRay's linear layers are numbered 0, 2, 4. torchvision's are 0, 3, 6, because dropout layers stand between them.
_VGG_CLASSIFIER = {"0": "0", "2": "3", "4": "6"}


def _build(arch: str, num_classes: int) -> SplitNetwork:
    """TorchRay's ``resnet50`` or ``vgg16`` with random weights."""
    from torchvision import models

    model = models.get_model(arch, weights=None, num_classes=num_classes)
    if arch == "resnet50":
        model.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=True)
        model.maxpool = nn.MaxPool2d(3, stride=2, padding=0)
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    return split_torchvision(arch, model, mean=MEAN, std=STD)


def torchvision_state(arch: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TorchRay's state dict of ``arch`` with torchvision's names and shapes. The first convolution takes RGB.

    ResNet-50: Caffe has a batch norm in two layers, normalisation (``bn1.0``) and scale (``bn1.1``). VGG-16: the classifier's
    weights may be those of convolutions, (out,in,k,k). They are flattened to (out,in·k·k).
    """
    renamed = {}
    for name, value in state.items():
        if arch == "resnet50":
            key = re.sub(r"\b(bn\d|downsample\.1)\.[01]\.", r"\1.", name)
        else:
            key = re.sub(r"^classifier\.([024])\.", lambda match: f"classifier.{_VGG_CLASSIFIER[match[1]]}.", name)
            if key.startswith("classifier.") and value.ndim == 4:
                value = value.flatten(1)
        if key in ("conv1.weight", "features.0.weight"):
            value = value.flip(1)
        renamed[key] = value
    return renamed


class TorchRayFamily(TorchvisionFamily):
    """TorchRay's variants of ``resnet50`` and ``vgg16``. Their weights come from TorchRay's files."""

    named_weights = False
    needs_file = True

    def handles(self, arch: str, source: str) -> bool:
        """Whether ``source`` is ``torchray``. :meth:`check` raises if TorchRay does not have ``arch``."""
        return source == "torchray"

    def check(self, arch: str, weights: str | None, options: Mapping[str, object], *, multilabel: bool) -> None:
        """Check for one of the two networks, multi-label, without options and without torchvision's weights."""
        if arch not in TORCHRAY_NETWORKS:
            raise ValueError(f"source: TorchRay has {' and '.join(TORCHRAY_NETWORKS)}, not {arch}")
        if weights is not None:
            raise ValueError(
                f"weights: {weights!r} is a name of torchvision's weights; give the file of TorchRay's network"
            )
        if not multilabel:
            raise ValueError("source: TorchRay's networks are multi-label; set data.multilabel to true")
        super().check(arch, None, options, multilabel=multilabel)

    def build(
        self, arch: str, num_classes: int, weights: str | None, options: Mapping[str, object], *, new_classes: bool
    ) -> SplitNetwork:
        """The network with random weights."""
        return _build(arch, num_classes)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless ``class_names`` are the twenty of VOC in the order of these networks' logits."""
        if tuple(class_names) == VOC_CLASSES:
            return
        differ = [
            f"{n + 1}. {a!r} instead of {b!r}"
            for n, (a, b) in enumerate(zip(class_names, VOC_CLASSES, strict=False))
            if a != b
        ]
        raise ValueError(
            f"source: TorchRay's networks have VOC's {len(VOC_CLASSES)} classes in alphabetical order, but the data set has "
            f"{len(class_names)}{f' ({differ[0]})' if differ else ''}; set data.classes to {', '.join(VOC_CLASSES)}"
        )

    def describe(self, arch: str) -> str:
        """The network's name and source."""
        return f"TorchRay's {arch}"

    def rename_state(self, arch: str, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The state dict with torchvision's names."""
        return torchvision_state(arch, state)
