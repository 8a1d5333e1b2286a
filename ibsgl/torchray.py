"""The networks behind the published baseline figures: TorchRay's VGG-16 and ResNet-50, converted from Caffe.

Fine-tuned to VOC 2007 (and to COCO) by Zhang et al. (2018) for excitation backprop, multi-label with a sigmoid per class, and
published by TorchRay as ``vgg16_voc-b050e8c3.pth.tar`` and ``resnet50_voc-9ca920d6.pth.tar``. They differ from torchvision's
networks in their input (BGR, 0…255, only the mean subtracted), in rounding up the size of a pooled map, and on ResNet-50 in a
bias of the first convolution, the padding of the first pool, and the stride, which sits in a stage's first 1×1 convolution.

Here the first convolution's input channels are turned to RGB and the scale of 255 is part of the normalisation, so that these
networks take RGB in [0, 1] like all others. TorchRay can also run the classifier as convolutions over the map of a larger
image, one answer a place; at 224×224 pixels there is one place, and its answer is this network's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ibsgl.network import SplitNetwork, split_torchvision

# Caffe's means of the blue, green and red values of ImageNet's pixels, turned to RGB in [0, 1].
MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
STD = (1 / 255,) * 3
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Without dropout between them, the linear layers are numbered 0, 2, 4; torchvision's are 0, 3, 6.
_VGG_CLASSIFIER = {"0": "0", "2": "3", "4": "6"}


def build(arch: str, num_classes: int) -> SplitNetwork:
    """``resnet50`` or ``vgg16`` as TorchRay has it, with random weights."""
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
    """TorchRay's state dict of ``arch`` under torchvision's names and shapes, its first convolution for RGB.

    On ResNet-50 Caffe has a batch norm in two layers, normalisation (``bn1.0``) and scale (``bn1.1``); on VGG-16 the
    classifier's weights may be those of convolutions, (out,in,k,k), and are flattened to (out,in·k·k).
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


def check_classes(class_names: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``class_names`` are VOC's twenty in the order of these networks' logits."""
    if tuple(class_names) == VOC_CLASSES:
        return
    differ = [
        f"{n + 1}. {a!r} instead of {b!r}"
        for n, (a, b) in enumerate(zip(class_names, VOC_CLASSES, strict=False))
        if a != b
    ]
    raise ValueError(
        f"source: torchray: its networks know VOC's {len(VOC_CLASSES)} classes in alphabetical order, the data set has "
        f"{len(class_names)}{f' ({differ[0]})' if differ else ''}; set data.classes to {', '.join(VOC_CLASSES)}"
    )
