"""A network in two parts, split at its last convolutional feature map A: ``stem`` (image → A) and ``head`` (A → logits).

Saliency, the information bottleneck and guidance run the stem once per image and then work on the head alone. No hooks are
needed. Images are RGB in [0, 1]. Normalisation is the first layer of the stem, so that black is zero for every method and
metric.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, cast

import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Activation(Protocol):
    """A layer that may overwrite its input, such as ReLU."""

    inplace: bool


class Normalize(nn.Module):
    """(B,3,H,W) in [0,1] → (x − mean) / std per colour channel."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise ``images`` (B,3,H,W)."""
        return (images - self.mean) / self.std


class SplitNetwork(nn.Module):
    """A network in two parts: ``head(stem(images))``.

    Args:
        stem: (B,3,H,W) → A (B,C,h,w). It ends at the activation of the last convolutional layer.
        head: A → logits (B,K).
        target_layer_name: the name of A in the original network (``layer4``, ``conv5_3``), for messages.
        mean, std: normalisation of each colour channel before ``stem``. With ``None`` images are not normalised.
        multilabel: the logits are K independent decisions (sigmoid) instead of one choice among K (softmax).
        stages: submodules of ``stem``, named as for ``stem.get_submodule``. Their outputs are the maps just before each spatial
            reduction (pooling or a stride), the largest map first. The last one is the end of the stem; ``""`` is the stem
            itself. Without stages :meth:`stage_maps` cannot be called.
        reduced: as ``stages``, but just after each spatial reduction. A name that begins with ``head.`` is a submodule of
            ``head``.

    Raises:
        ValueError: ``mean`` without ``std`` or the reverse, or a name in ``stages`` or ``reduced`` that is no submodule.
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
        stages: Sequence[str] = (),
        reduced: Sequence[str] = (),
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        self.stages = tuple(stages)
        self.reduced = tuple(reduced)
        # In a tuple, because an attribute that is a module would be a submodule once more.
        self._stage_modules = tuple(_submodule(stem, name, "stages") for name in stages)
        self._reduced_modules = tuple(
            _submodule(head, name.removeprefix("head."), "reduced", "head")
            if name.startswith("head.")
            else _submodule(stem, name, "reduced")
            for name in reduced
        )
        if mean is not None and std is not None:
            stem = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), backbone=stem))
        self.stem = stem
        self.head = head
        self.target_layer_name = target_layer_name
        self.multilabel = multilabel
        # An activation that is overwritten in place cannot be differentiated twice (Eq. 10), and FullGrad cannot read it.
        for module in self.modules():
            if getattr(module, "inplace", False):
                cast(_Activation, module).inplace = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) in [0,1] → logits (B,K)."""
        return self.head(self.stem(images))

    def stage_maps(self, images: torch.Tensor, layers: str = "before") -> tuple[list[torch.Tensor], torch.Tensor]:
        """Images (B,3,H,W) → the maps (B,C_i,h_i,w_i) of the stages, the largest first, and the logits (B,K): one pass.

        If ``images`` requires a gradient, the logits can be differentiated with respect to every map.

        Args:
            images: in [0,1].
            layers: ``before``: the maps just before each spatial reduction (``stages``); ``after``: just after (``reduced``).

        Raises:
            ValueError: the network does not have such stages, or a pass does not run them once each in their order.
        """
        key, modules = ("stages", self._stage_modules) if layers == "before" else ("reduced", self._reduced_modules)
        if not modules:
            raise ValueError(missing_stages(layers))
        maps: list[torch.Tensor] = []
        order: list[int] = []

        def record(place: int, module: nn.Module, _: tuple, output: torch.Tensor) -> None:
            order.append(place)
            maps.append(output)

        with ExitStack() as hooks:
            for place, module in enumerate(modules):
                hooks.enter_context(module.register_forward_hook(partial(record, place)))
            features = self.stem(images)
            logits = self.head(features)
        if order != list(range(len(modules))):
            places = ", ".join(str(place + 1) for place in order) or "none"
            raise ValueError(
                f"{key}: a pass must run each of the {len(modules)} once and in this order; it ran number {places}"
            )
        if layers == "before" and maps[-1] is not features:
            raise ValueError("stages: the last one must be the end of the stem")
        return maps, logits

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B,K) → class probabilities (B,K), by a sigmoid on a multi-label network and a softmax otherwise."""
        # In half precision a probability has two or three digits. That is too few to compare images.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    @property
    def mean(self) -> torch.Tensor:
        """The colour (3,1,1) that normalisation maps to zero. Without normalisation it is black."""
        for module in self.stem.modules():
            if isinstance(module, Normalize):
                return module.mean
        return torch.zeros(3, 1, 1, device=next(self.parameters()).device)


def missing_stages(layers: str) -> str:
    """The message about a network without the stages that ``SplitNetwork.stage_maps(…, layers)`` needs."""
    key = "stages" if layers == "before" else "reduced"
    return f"the network has no {key}; name its submodules with SplitNetwork(..., {key}=[...]), as docs/own.md shows"


def _submodule(part: nn.Module, name: str, argument: str, of: str = "stem") -> nn.Module:
    """The submodule ``name`` of ``part``, or ``ValueError`` that names ``argument``."""
    try:
        return part.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in part.named_children()) or "no submodules"
        raise ValueError(f"{argument}: the {of} has no submodule {name!r}; at its top it has {known}") from None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside this block: evaluation mode, and parameters without gradients.

    After it, every module and parameter is as it was before, also if the block raises.
    """
    modes = [(module, module.training) for module in network.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)


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


def upsample(maps: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Maps (B,h,w) → (B,H,W), bilinear with ``align_corners=False``."""
    return nn.functional.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def same_image_groups(images: torch.Tensor) -> torch.Tensor:
    """(B,) int64: entries of the batch with the same image have the same number, counted from 0 in order.

    An image with several classes is in a batch once per class, in neighbouring places. The forward passes of RISE and
    Score-CAM do not depend on the class, so they run once per group.
    """
    new = (images[1:] != images[:-1]).flatten(1).any(1)
    return torch.cat([new.new_zeros(min(len(images), 1), dtype=torch.int64), new.cumsum(0)])
