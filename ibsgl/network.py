"""A network split at its last convolutional feature map: ``stem`` (image → A) and ``head`` (A → logits).

Saliency, the information bottleneck and the guidance need the stem once per image and then work on the head alone, so the
split is explicit and no hooks are needed. Images enter as RGB in [0, 1]; normalisation is the first layer of the stem, which
makes "black" the same thing, zero, for every method and metric.
"""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(B,3,H,W) in [0,1] → (x − mean) / std per colour channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise ``images`` (B,3,H,W)."""
        return (images - self.mean) / self.std


class SplitNetwork(nn.Module):
    """``head(stem(images))`` with the last convolutional feature map A = ``stem(images)`` in the open.

    Args:
        stem: (B,3,H,W) → A (B,C,h,w), ending at the activation of the last convolutional layer.
        head: A → logits (B,K).
        target_layer_name: what A is called in the original network, for people (``layer4``, ``conv5_3``).
        mean, std: per-channel normalisation put in front of ``stem``; ``None`` leaves the images as they are.
        multilabel: the logits are K independent decisions (sigmoid) instead of one choice among K (softmax).
    """

    def __init__(
        self,
        stem: nn.Module,
        head: nn.Module,
        target_layer_name: str = "",
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        multilabel: bool = False,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        if mean is not None:
            stem = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), backbone=stem))
        self.stem = stem
        self.head = head
        self.target_layer_name = target_layer_name
        self.multilabel = multilabel
        # An activation overwritten in place cannot be differentiated twice (Eq. 10) nor read by FullGrad.
        for module in self.modules():
            if getattr(module, "inplace", False):
                module.inplace = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) in [0,1] → logits (B,K)."""
        return self.head(self.stem(images))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B,K) → class probabilities (B,K): sigmoid on a multi-label network, softmax otherwise."""
        # A probability in half precision has two or three digits: too few to compare one image's with another's.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    @property
    def mean(self) -> torch.Tensor:
        """The colour (3,1,1) that normalisation maps to zero; black where there is no normalisation."""
        for module in self.stem.modules():
            if isinstance(module, Normalize):
                return module.mean
        return torch.zeros(3, 1, 1, device=next(self.parameters()).device)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradients inside; every module and parameter as before outside, always."""
    modes = [(module, module.training) for module in network.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        for parameter, _ in needs:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in needs:
            parameter.requires_grad_(required)


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 autocast on CUDA, nothing elsewhere; for plain forward passes, not for gradients of gradients or sums over masks."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def check_batch(images: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` is (B,3,H,W) and ``targets`` (B,) int64."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have the shape (B, 3, H, W), not {tuple(images.shape)}")
    if targets.shape != images.shape[:1]:
        raise ValueError(
            f"targets must hold one class per image: {images.shape[0]} images, {tuple(targets.shape)} targets"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 class indices, not {targets.dtype}")


def features_and_gradient(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and ∂y^c/∂A, both (B,C,h,w) and detached, in evaluation mode: one stem pass, the gradient through the head alone."""
    check_batch(images, targets)
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(images)
        with torch.enable_grad():
            gradient = feature_gradient(network.head, features.requires_grad_(True), targets)
    return features.detach(), gradient


def feature_gradient(
    head: nn.Module, features: torch.Tensor, targets: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """∂y^c/∂A (B,C,h,w) of ``features`` A, which require a gradient, for each image's class c (B,)."""
    # One logit an image, so the sum's gradient is each image's own.
    score = head(features).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, features, create_graph=create_graph)[0]


def upsample(maps: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Maps (B,h,w) → (B,H,W), bilinear with ``align_corners=False``."""
    return nn.functional.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def same_image_groups(images: torch.Tensor) -> torch.Tensor:
    """(B,) index of the distinct image that each entry of the batch shows, numbered from 0 in order.

    An image with several classes appears in a batch once per class, in neighbouring places; methods whose forward passes do
    not depend on the class (RISE, Score-CAM) run them once per group.
    """
    new = (images[1:] != images[:-1]).flatten(1).any(1)
    return torch.cat([new.new_zeros(min(len(images), 1), dtype=torch.int64), new.cumsum(0)])


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016), here so that small networks load without torchvision."""

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
    """A ResNet of one BasicBlock a stage; 96×96 images end in an (8·width, 6, 6) map."""
    w = width
    stem = nn.Sequential(
        _conv_bn_relu(3, w, 2),
        _BasicBlock(w, w, 1),
        _BasicBlock(w, 2 * w, 2),
        _BasicBlock(2 * w, 4 * w, 2),
        _BasicBlock(4 * w, 8 * w, 2),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, num_classes))
    return SplitNetwork(stem, head, "stage4", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _vgg_small(num_classes: int, width: int = 16) -> SplitNetwork:
    """A batch-norm VGG with a fully connected head; its last convolution sees (8·width, 6, 6) on 96×96 images."""
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
    return SplitNetwork(stem, head, "conv5", mean=IMAGENET_MEAN, std=IMAGENET_STD)


SMALL_NETWORKS: dict[str, Callable[..., SplitNetwork]] = {"resnet_small": _resnet_small, "vgg_small": _vgg_small}
TORCHVISION_NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
)


def _split_torchvision(arch: str, num_classes: int, weights: str | None) -> SplitNetwork:
    # Imported here: torchvision pulls in the compiler stack, seconds that the small networks' jobs need not pay.
    from torchvision import models

    pretrained = models.get_model_weights(arch).DEFAULT if weights == "imagenet" else None
    model = models.get_model(arch, weights=pretrained, **({} if pretrained else {"num_classes": num_classes}))
    last = model.fc if arch.startswith("resnet") else model.classifier[-1]
    if last.out_features != num_classes:
        last = nn.Linear(last.in_features, num_classes)
    if arch.startswith("resnet"):
        stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        stem = nn.Sequential(OrderedDict((name, getattr(model, name)) for name in stages))
        head = nn.Sequential(OrderedDict(avgpool=model.avgpool, flatten=nn.Flatten(), fc=last))
        name = "layer4"
    else:
        model.classifier[-1] = last
        stem = model.features[:-1]
        head = nn.Sequential(
            OrderedDict(
                pool=model.features[-1], avgpool=model.avgpool, flatten=nn.Flatten(), classifier=model.classifier
            )
        )
        blocks = sum(isinstance(m, nn.MaxPool2d) for m in model.features)
        convolutions = 0
        for module in stem:
            convolutions = 0 if isinstance(module, nn.MaxPool2d) else convolutions + isinstance(module, nn.Conv2d)
        name = f"conv{blocks}_{convolutions}"
    return SplitNetwork(stem, head, name, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def load_factory(arch: str) -> Callable[..., SplitNetwork]:
    """The callable behind ``package.module:function``; ``ValueError`` says which part of the name was not found."""
    module_name, _, function = arch.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(
            f"arch {arch!r}: no module {module_name!r}; is its package installed, or its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"arch {arch!r}: module {module_name!r} has no function {function!r}") from error
    if not callable(factory):
        raise ValueError(f"arch {arch!r}: {function!r} is not callable")
    return factory


def check_arch(arch: str) -> None:
    """Raise ``ValueError`` unless ``arch`` is a built-in name or a factory that can be imported."""
    if ":" in arch:
        load_factory(arch)
    elif arch not in SMALL_NETWORKS and arch not in TORCHVISION_NETWORKS:
        known = ", ".join([*SMALL_NETWORKS, *TORCHVISION_NETWORKS])
        raise ValueError(f"arch {arch!r} is unknown; take one of {known}, or your own as package.module:function")


def check_options(arch: str, weights: str | None, options: dict[str, object]) -> None:
    """Raise ``ValueError`` or ``TypeError`` where ``build_network`` would refuse these arguments; costs no memory.

    A factory is only asked for its parameters, since building its network may download or read weights.
    """
    if ":" in arch:
        if weights == "imagenet":
            raise ValueError(f"weights: 'imagenet' means torchvision's; {arch} brings its own, say through options")
        inspect.signature(load_factory(arch)).bind(2, **options)
    elif arch in SMALL_NETWORKS:
        if weights == "imagenet":
            raise ValueError(f"weights: {arch} has no ImageNet weights")
        inspect.signature(SMALL_NETWORKS[arch]).bind(2, **options)
    elif options:
        raise ValueError(f"options: {arch} takes none, not {', '.join(options)}")


def build_network(
    arch: str, num_classes: int, weights: str | Path | None = None, *, multilabel: bool = False, **kw: object
) -> SplitNetwork:
    """A :class:`SplitNetwork` with ``num_classes`` logits.

    Args:
        arch: ``resnet_small``, ``vgg_small``, a torchvision ResNet or VGG by its name, or ``package.module:factory``.
        num_classes: number of logits K.
        weights: ``None`` (random, from torch's global generator), ``"imagenet"`` (torchvision's, last layer replaced where K
            differs), or the path of a state dict of this very network.
        multilabel: sets :attr:`SplitNetwork.multilabel`.
        kw: further arguments of a small network or of the factory, which is called as ``factory(num_classes, **kw)``.
    """
    check_arch(arch)
    check_options(arch, "imagenet" if weights == "imagenet" else None, kw)
    if ":" in arch:
        network = load_factory(arch)(num_classes, **kw)
        if not isinstance(network, SplitNetwork):
            raise TypeError(f"{arch} returned {type(network).__name__}; it must return an ibsgl.network.SplitNetwork")
    elif arch in SMALL_NETWORKS:
        network = SMALL_NETWORKS[arch](num_classes, **kw)
    else:
        network = _split_torchvision(arch, num_classes, "imagenet" if weights == "imagenet" else None)
    if weights is not None and weights != "imagenet":
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.multilabel = multilabel
    return network.to(memory_format=torch.channels_last)
