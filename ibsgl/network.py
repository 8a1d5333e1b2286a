"""A network split at its last convolutional feature map: ``stem`` (image → A) and ``head`` (A → logits).

Saliency, the information bottleneck and the guidance need the stem once per image and then work on the head alone, so the
split is explicit and no hooks are needed. Images enter as RGB in [0, 1]; normalisation is the first layer of the stem, which
makes "black" the same thing, zero, for every method and metric.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ibsgl.weights import load_state, read_state

T = TypeVar("T")

# Images. VGG's first maps of so many at 224 pixels have fewer than 2³¹ numbers, what some kernels can count to.
LARGEST_CHUNK = 512

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


_LAST_GRADIENT: ContextVar[list | None] = ContextVar("_LAST_GRADIENT", default=None)


@contextmanager
def shared_gradient() -> Iterator[None]:
    """Inside, :func:`features_and_gradient` answers the same question (the very same tensors) from memory: several
    methods that are asked about one batch share its pass. The network must not change meanwhile.
    """
    token = _LAST_GRADIENT.set([])
    try:
        yield
    finally:
        _LAST_GRADIENT.reset(token)


def features_and_gradient(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and ∂y^c/∂A, both (B,C,h,w) and detached, in evaluation mode: one stem pass, the gradient through the head alone.

    Neither may be written to: :func:`shared_gradient` may hand them out again.
    """
    check_batch(images, targets)
    asked, last = (network, images, targets), _LAST_GRADIENT.get()
    if last and all(a is b for a, b in zip(last[0], asked, strict=True)):
        return last[1]
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(images)
        with torch.enable_grad():
            gradient = feature_gradient(network.head, features.requires_grad_(True), targets)
    answer = features.detach(), gradient
    if last is not None:
        last[:] = asked, answer
    return answer


def feature_gradient(
    head: nn.Module, features: torch.Tensor, targets: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """∂y^c/∂A (B,C,h,w) of ``features`` A, which require a gradient, for each image's class c (B,)."""
    return logit_gradient(head(features), features, targets, create_graph)


def logit_gradient(
    logits: torch.Tensor,
    features: torch.Tensor,
    targets: torch.Tensor,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> torch.Tensor:
    """∂y^c/∂A (B,C,h,w) as :func:`feature_gradient`, of logits (B,K) that the head has given for A already."""
    # One logit an image, so the sum's gradient is each image's own.
    score = logits.gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, features, create_graph=create_graph, retain_graph=retain_graph)[0]


def chunked(run: Callable[[int, int], T], total: int, chunk: int, device: torch.device) -> Iterator[T]:
    """``run(start, stop)`` over 0 … ``total``, ``chunk`` at a time, in order.

    Where the device runs out of memory, the same piece is run again in halves and the chunks stay small. On CUDA they
    double, up to ``LARGEST_CHUNK``, as long as the memory that the last one took fits twice into what is free. ``run``
    must change nothing before it is done, and its results may differ with the chunk by rounding only.
    """
    start, limit = 0, max(chunk, LARGEST_CHUNK)
    while start < total:
        stop, before = min(start + chunk, total), _memory(device)
        try:
            result = run(start, stop)
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            result = None
        # Outside of the handler, where the traceback no longer holds the failed piece's tensors.
        if result is None:
            chunk = limit = (stop - start) // 2
            _forget(device)
            continue
        yield result
        if before is not None and stop - start == chunk:
            free, total_memory = torch.cuda.mem_get_info(device)
            taken = torch.cuda.max_memory_allocated(device) - before
            # What torch holds in reserve and does not use is free too; a tenth is kept for fragments.
            spare = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - total_memory // 10
            chunk = min(2 * chunk, limit) if 2 * taken < spare else chunk
        start = stop


def in_pieces(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """``function(images)``, in smaller batches where memory does not hold it."""
    return torch.cat(list(chunked(lambda a, b: function(images[a:b]), len(images), max(1, len(images)), images.device)))


def _memory(device: torch.device) -> int | None:
    """Bytes of tensors on a CUDA device, whose peak is counted anew from here; ``None`` elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
TORCHRAY_NETWORKS = ("resnet50", "vgg16")


def is_torchvision_weights(weights: object) -> bool:
    """Whether ``weights`` names weights that torchvision brings, and not a file: ``imagenet`` or ``IMAGENET1K_…``."""
    return weights == "imagenet" or str(weights).startswith("IMAGENET1K_")


def _weights_enum(arch: str, weights: str):
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
    """torchvision's network with as many classes as its weights have, or ``num_classes`` without weights."""
    # Imported here: torchvision pulls in the compiler stack, seconds that the small networks' jobs need not pay.
    from torchvision import models

    if weights is None:
        return models.get_model(arch, weights=None, num_classes=num_classes)
    pretrained = _weights_enum(arch, weights)
    try:
        return models.get_model(arch, weights=pretrained)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{arch}: torchvision's ImageNet weights could not be fetched or read ({reason}); put the file "
            f"{pretrained.url} as {pretrained.url.rpartition('/')[2]} into {torch.hub.get_dir()}/checkpoints by hand"
        ) from error


def split_torchvision(
    arch: str, model: nn.Module, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> SplitNetwork:
    """torchvision's ResNet or VGG ``model``, which is ``arch``, split at its last convolutional feature map."""
    if arch.startswith("resnet"):
        stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        stem = nn.Sequential(OrderedDict((name, getattr(model, name)) for name in stages))
        head = nn.Sequential(OrderedDict(avgpool=model.avgpool, flatten=nn.Flatten(), fc=model.fc))
        name = "layer4"
    else:
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
    return SplitNetwork(stem, head, name, mean=mean, std=std)


def _torchvision_key(arch: str, key: str) -> str:
    """What torchvision calls the parameter ``key`` of :func:`split_torchvision`'s network."""
    features = "" if arch.startswith("resnet") else "features."
    if key.startswith("stem.backbone."):
        return features + key.removeprefix("stem.backbone.")
    return key.removeprefix("head.")


def _split_torchvision(arch: str, num_classes: int, weights: str | None, new_classes: bool) -> SplitNetwork:
    model = _torchvision_model(arch, num_classes, weights)
    last = model.fc if arch.startswith("resnet") else model.classifier[-1]
    if last.out_features != num_classes:
        if not new_classes:
            raise ValueError(
                f"weights: {weights} has {last.out_features} classes and the data {num_classes}: the last layer would be "
                "new and never trained; set classifier.epochs to 1 or more"
            )
        new = nn.Linear(last.in_features, num_classes)
        if arch.startswith("resnet"):
            model.fc = new
        else:
            model.classifier[-1] = new
    return split_torchvision(arch, model)


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


def check_options(arch: str, weights: object, options: dict[str, object], source: str = "torchvision") -> None:
    """Raise ``ValueError`` or ``TypeError`` where ``build_network`` would refuse these arguments; costs no memory.

    A factory is only asked for its parameters, since building its network may download or read weights.
    """
    named = is_torchvision_weights(weights)
    if source == "torchray":
        if arch not in TORCHRAY_NETWORKS:
            raise ValueError(f"source: TorchRay has {' and '.join(TORCHRAY_NETWORKS)}, not {arch}")
        if named:
            raise ValueError(f"weights: {weights!r} means torchvision's; give the file of TorchRay's network")
    if ":" in arch:
        if named:
            raise ValueError(f"weights: {weights!r} means torchvision's; {arch} brings its own, say through options")
        inspect.signature(load_factory(arch)).bind(2, **options)
    elif arch in SMALL_NETWORKS:
        if named:
            raise ValueError(f"weights: {arch} has no ImageNet weights")
        inspect.signature(SMALL_NETWORKS[arch]).bind(2, **options)
    elif options:
        raise ValueError(f"options: {arch} takes none, not {', '.join(options)}")
    elif named and weights != "imagenet":
        _weights_enum(arch, weights)


def build_network(
    arch: str,
    num_classes: int,
    weights: str | Path | None = None,
    *,
    multilabel: bool = False,
    source: str = "torchvision",
    new_classes: bool = True,
    **kw: object,
) -> SplitNetwork:
    """A :class:`SplitNetwork` with ``num_classes`` logits.

    Args:
        arch: ``resnet_small``, ``vgg_small``, a torchvision ResNet or VGG by its name, or ``package.module:factory``.
        num_classes: number of logits K.
        weights: ``None`` (random, from torch's global generator), ``"imagenet"`` (torchvision's newest), ``"IMAGENET1K_V1"``
            and its like (the ones of that name), or the path of a state dict: of this very network, or, for a torchvision
            name, of torchvision's network or (``source``) TorchRay's.
        multilabel: sets :attr:`SplitNetwork.multilabel`.
        source: ``"torchvision"``, or ``"torchray"`` for the variant of ``resnet50`` and ``vgg16`` in :mod:`ibsgl.torchray`.
        new_classes: whether weights of another number of classes are taken without their last layer, which then is new.
        kw: further arguments of a small network or of the factory, which is called as ``factory(num_classes, **kw)``.

    Raises:
        ValueError: an argument or ``weights`` does not fit; one line.
    """
    check_arch(arch)
    named = is_torchvision_weights(weights)
    check_options(arch, weights if named else None, kw, source)
    if ":" in arch:
        network = load_factory(arch)(num_classes, **kw)
        if not isinstance(network, SplitNetwork):
            raise TypeError(f"{arch} returned {type(network).__name__}; it must return an ibsgl.network.SplitNetwork")
    elif arch in SMALL_NETWORKS:
        network = SMALL_NETWORKS[arch](num_classes, **kw)
    elif source == "torchray":
        from ibsgl.torchray import build

        network = build(arch, num_classes)
    else:
        network = _split_torchvision(arch, num_classes, weights if named else None, new_classes)
    if weights is not None and not named:
        _load_file(network, arch, Path(weights), source, new_classes)
    network.multilabel = multilabel
    return network.to(memory_format=torch.channels_last)


def _load_file(network: SplitNetwork, arch: str, path: Path, source: str, new_classes: bool) -> None:
    state = read_state(path)
    names = {key: key for key in network.state_dict()}
    split = any(key.startswith(("stem.", "head.")) for key in state)
    if arch in TORCHVISION_NETWORKS and not split:
        names = {key: _torchvision_key(arch, key) for key in names}
        if source == "torchray":
            from ibsgl.torchray import torchvision_state

            state = torchvision_state(arch, state)
    load_state(
        network,
        state,
        path,
        names=names,
        what=f"TorchRay's {arch}" if source == "torchray" else arch,
        new_classes=new_classes,
    )
