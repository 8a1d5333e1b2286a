"""The networks of a config: their size, and the FLOPs that one image costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from ibsgl.attribution import Passes, StageChannels
from ibsgl.attribution.cost import stage_channels
from ibsgl.config import Config
from ibsgl.guidance import LOSSES, GuidanceSettings, training_losses
from ibsgl.guidance.registry import NO_LOSS, PAPER
from ibsgl.guidance.settings import PAPER_KEYS
from ibsgl.networks import SplitNetwork, evaluating
from ibsgl.suppression import SuppressionSettings


@dataclass(frozen=True)
class UnitCosts:
    """The cost of one image, in FLOPs or in seconds.

    Attributes:
        full: one pass of each kind in float32.
        mixed: one pass of each kind in the run's ``precision``.
        training: one image's share of an unguided training step, forward and backward to the weights.
        guidance: what guidance adds to it, by :func:`kind_of`: one gradient of Eq. 10, or another guidance loss.
    """

    full: Passes
    mixed: Passes
    training: float
    guidance: dict[str, float]

    def training_step(self, guidance: GuidanceSettings | None) -> float:
        """One image's share of a guided training step or, without ``guidance``, of an unguided one."""
        if guidance is None:
            return self.training
        return self.training + inner_steps(guidance) * self.guidance[kind_of(guidance)]


@dataclass(frozen=True)
class Work:
    """A number of passes, each of one image, with their FLOPs and their seconds. Without calibration there are no seconds."""

    passes: Passes
    flops: float
    seconds: float | None

    def __add__(self, other: Work) -> Work:
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Work(self.passes + other.passes, self.flops + other.flops, seconds)

    def __mul__(self, times: int) -> Work:
        return Work(self.passes * times, self.flops * times, None if self.seconds is None else self.seconds * times)


@dataclass(frozen=True)
class NetworkFacts:
    """A network of the config: its size, and the cost of one image.

    Attributes:
        model: the network's name in the config.
        features: shape (C,h,w) of the feature map.
        parameters: number of parameters.
        bytes: size of the state dict.
        flops: FLOPs of one image.
        stages: channels of the maps of its stages.
        seconds: seconds of one image; ``None`` without calibration.
        batch: number of images in each calibrated pass; ``None`` without calibration.
    """

    model: str
    arch: str
    image_size: int
    features: tuple[int, int, int]
    parameters: int
    bytes: int
    flops: UnitCosts
    stages: StageChannels
    seconds: UnitCosts | None = None
    batch: int | None = None

    def work(self, passes: Passes, mixed: bool = False) -> Work:
        """The work of ``passes`` outside of training."""
        seconds = None
        if self.seconds is not None:
            seconds = passes.weighted_by(self.seconds.mixed if mixed else self.seconds.full)
        return Work(passes, passes.weighted_by(self.flops.full), seconds)

    def training_work(self, examples: int, guidance: GuidanceSettings | None = None) -> Work:
        """The work of training on ``examples`` images: guided or, without ``guidance``, unguided."""
        passes = Passes(stem=1, head=1, stem_backward=1, head_backward=1)
        if guidance is not None and guidance.loss == PAPER:
            # An inner step is one pass of the head (for p, L^c and L^p), two gradients, and the gradient of those.
            steps = inner_steps(guidance)
            passes += Passes(head=steps, head_backward=3 * steps)
        elif guidance is not None:
            passes += getattr(LOSSES.load(guidance.loss), "passes", Passes())
        seconds = None if self.seconds is None else examples * self.seconds.training_step(guidance)
        return Work(passes * examples, examples * self.flops.training_step(guidance), seconds)


MODES = ("feature", "end_to_end")


def kind_of(guidance: GuidanceSettings) -> str:
    """Trainings with guidance of the same kind cost the same, apart from the inner steps: the mode, or another loss's name."""
    return guidance.mode if guidance.loss == PAPER else guidance.loss


def guidance_units(config: Config) -> dict[str, GuidanceSettings]:
    """By kind, guidance with a single gradient of Eq. 10, which all cost the same, or with another loss of the config."""
    # The teacher does not change the cost.
    paper = GuidanceSettings.model_validate(
        config.guidance.model_dump(include=set(PAPER_KEYS)) | {"steps": 1, "teacher": "uniform"}
    )
    units = {mode: paper.model_copy(update={"mode": mode}) for mode in MODES}
    others = [config.guidance_of(variant) for variant in config.trained_variants]
    return units | {guidance.loss: guidance for guidance in others if guidance.loss not in (PAPER, NO_LOSS)}


def inner_steps(guidance: GuidanceSettings) -> int:
    """How many gradients of Eq. 10 a training step takes; 1 for another loss."""
    return guidance.steps if kind_of(guidance) == "feature" else 1


def training_loss(
    network: SplitNetwork,
    images: torch.Tensor,
    classes: int,
    guidance: GuidanceSettings | None,
    suppression: SuppressionSettings,
) -> torch.Tensor:
    """The scalar loss that training minimises on the batch ``images`` (B,3,H,W), with made-up targets, maps and boxes.

    They do not change the cost: every image is of class 0, the teacher's map is 1 everywhere, and the boxes are everywhere.
    """
    labels = images.new_zeros(len(images), classes)
    labels[:, 0] = 1
    target = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    losses = training_losses(
        network,
        images,
        labels,
        target,
        guidance.build_loss(suppression) if guidance is not None else None,
        teach=lambda a: a.new_ones(len(a), *a.shape[2:]),
        region=torch.ones_like(images[:, 0], dtype=torch.bool),
        generators=[torch.Generator(images.device if images.device.type == "cuda" else "cpu") for _ in images],
    )
    return losses["loss"].mean()


def _train(
    network: SplitNetwork,
    images: torch.Tensor,
    classes: int,
    guidance: GuidanceSettings | None,
    suppression: SuppressionSettings,
) -> None:
    training_loss(network, images, classes, guidance, suppression).backward()


class _NoModules(nullcontext):
    """Replaces torch's record of the running module, whose hooks forbid the gradient of a module's own input."""

    parents = frozenset({"Global"})


def flops_of(run: Callable[[], object]) -> int:
    """FLOPs of ``run()`` as torch counts them: a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False)
    # It is a replacement for what the counter uses of it, not a subclass.
    counter.mod_tracker = cast(ModuleTracker, _NoModules())
    with counter:
        run()
    return counter.get_total_flops()


def count_flops(network: SplitNetwork, image_size: int, config: Config) -> tuple[tuple[int, int, int], UnitCosts]:
    """Shape (C,h,w) of the feature map, and the FLOPs of one image.

    Both depend on shapes only, so ``network`` may be on the meta device, where tensors have no memory.
    """
    images = torch.rand(1, 3, image_size, image_size, device=next(network.parameters()).device)
    forward, backward, outputs = {}, {}, {}
    with evaluating(network):
        x = images
        for name, part in (("stem", network.stem), ("head", network.head)):
            with torch.no_grad():
                forward[name] = flops_of(partial(part, x))
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                y = part(x)
                backward[name] = flops_of(partial(torch.autograd.grad, y.sum(), x))
            outputs[name] = x = y
    network.eval()
    classes = outputs["head"].shape[1]
    with torch.enable_grad():
        training, *guided = (
            flops_of(partial(_train, network, images, classes, guidance, config.suppression))
            for guidance in (None, *guidance_units(config).values())
        )
    network.zero_grad(set_to_none=True)
    passes = Passes(forward["stem"], forward["head"], backward["stem"], backward["head"])
    channels, height, width = outputs["stem"].shape[1:]
    return (channels, height, width), UnitCosts(
        passes,
        passes,
        training,
        {kind: cost - training for kind, cost in zip(guidance_units(config), guided, strict=True)},
    )


def random_network(config: Config, model: str, classes: int) -> SplitNetwork:
    """The network ``model`` with random weights. Nothing is downloaded, unless the user's own factory downloads something."""
    return config.network(model).model_copy(update={"weights": None}).build(classes)


def network_facts(config: Config, model: str, classes: int) -> NetworkFacts:
    """Size and FLOPs of the network ``model``. If its family allows it, no memory is taken for the weights."""
    settings = config.network(model)
    with torch.device("meta") if settings.family.builds_on_meta else nullcontext():
        network = random_network(config, model, classes)
    features, flops = count_flops(network, settings.image_size, config)
    return NetworkFacts(
        model,
        settings.arch,
        settings.image_size,
        features,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
        flops=flops,
        stages=stage_channels(network, settings.image_size),
    )
