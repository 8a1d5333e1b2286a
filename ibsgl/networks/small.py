"""Small networks for images of about 96 pixels. They load without torchvision, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ibsgl.networks.family import Family
from ibsgl.networks.split import IMAGENET_MEAN, IMAGENET_STD, SplitNetwork

_WIDEST = 1024


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016). torchvision's block would need torchvision's import."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = _conv_bn_relu(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) → (B,C',h/stride,w/stride)."""
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


def _resnet_small(num_classes: int, width: int = 16) -> SplitNetwork:
    """A ResNet with one block per stage. 96×96 images give a feature map of (8·width, 6, 6)."""
    if type(width) is not int or not 8 <= width <= _WIDEST:
        # With fewer channels, oneDNN's weight gradient of a 1×1 convolution with stride 2 writes beyond its memory (torch
        # 2.15, CPUs with AVX2 and without AVX-512).
        raise ValueError(f"width must be an integer from 8 to {_WIDEST}, not {width!r}")
    w = width
    stem = nn.Sequential(
        _conv_bn_relu(3, w, 2),
        BasicBlock(w, w, 1),
        BasicBlock(w, 2 * w, 2),
        BasicBlock(2 * w, 4 * w, 2),
        BasicBlock(4 * w, 8 * w, 2),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, num_classes))
    return SplitNetwork(
        stem,
        head,
        "stage4",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        stages=("1", "2", "3", "4"),
        reduced=("0", "2", "3", "4"),
    )


def _vgg_small(num_classes: int, width: int = 16) -> SplitNetwork:
    """A VGG with batch norm and a fully connected head. 96×96 images give a feature map of (8·width, 6, 6)."""
    if type(width) is not int or not 1 <= width <= _WIDEST:
        raise ValueError(f"width must be an integer from 1 to {_WIDEST}, not {width!r}")
    w = width
    stem = nn.Sequential(
        *(_conv_bn_relu(3, w), nn.MaxPool2d(2)),
        *(_conv_bn_relu(w, 2 * w), nn.MaxPool2d(2)),
        *(_conv_bn_relu(2 * w, 4 * w), nn.MaxPool2d(2)),
        *(_conv_bn_relu(4 * w, 8 * w), nn.MaxPool2d(2)),
        _conv_bn_relu(8 * w, 8 * w),
    )
    head = nn.Sequential(
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(8 * w * 9, 8 * w),
        nn.ReLU(),
        nn.Linear(8 * w, num_classes),
    )
    return SplitNetwork(
        stem,
        head,
        "conv5",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        stages=("0", "2", "4", "6", "8"),
        reduced=("1", "3", "5", "7", "head.0"),
    )


SMALL_NETWORKS: dict[str, Callable[..., SplitNetwork]] = {"resnet_small": _resnet_small, "vgg_small": _vgg_small}


class SmallFamily(Family):
    """The small networks. ``options`` are the arguments of the functions above, such as ``width``."""

    def handles(self, arch: str, source: str) -> bool:
        """Whether ``arch`` is a small network. ``source`` has no effect."""
        return arch in SMALL_NETWORKS

    def check(self, arch: str, weights: str | None, options: Mapping[str, object], *, multilabel: bool) -> None:
        """Check that there are no named weights and that the function takes the options."""
        if weights is not None:
            raise ValueError(f"weights: {arch} has no ImageNet weights")
        if "num_classes" in options:
            raise ValueError("options: num_classes is the number of the data's classes; remove it")
        try:
            with torch.device("meta"):
                SMALL_NETWORKS[arch](2, **options)
        except (TypeError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].removeprefix(f"{SMALL_NETWORKS[arch].__name__}() ")
            raise ValueError(f"options: {arch}: {reason}") from None

    def smallest_side(self, arch: str) -> int:
        """The head of the VGG halves its feature map once more."""
        return 32 if arch == "vgg_small" else 16

    def build(
        self, arch: str, num_classes: int, weights: str | None, options: Mapping[str, object], *, new_classes: bool
    ) -> SplitNetwork:
        """The network with random weights from torch's global generator."""
        return SMALL_NETWORKS[arch](num_classes, **options)
