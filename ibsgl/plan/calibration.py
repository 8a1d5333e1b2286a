"""How many seconds one image takes on this machine, measured with random weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn

from ibsgl import devices
from ibsgl.attribution import Passes
from ibsgl.config import Config
from ibsgl.guidance import GuidanceSettings
from ibsgl.networks import Precision, SplitNetwork, evaluating, fast_passes, forward_pass, input_gradient
from ibsgl.plan.networks import MODES, UnitCosts, guidance_units, random_network, training_loss

# Target seconds per timed pass; sets batch size and repeats.
PASS_SECONDS = 0.3


def calibrate(
    config: Config,
    model: str,
    classes: int,
    device: torch.device,
    precision: Precision,
) -> tuple[UnitCosts, int]:
    """Measure the seconds of one image on ``device``, and the passes that may run in bfloat16 in ``precision``.

    The stem gets ``config.batch_size`` images at a time, or fewer where a CPU would take long or a GPU runs out of memory.
    A CPU uses the config's ``threads``, as one job does.

    Returns:
        The seconds, and the number of images that the stem got at a time.
    """
    size, batch = config.models[model].image_size, config.batch_size
    if device.type == "cuda":
        devices.forbid_tf32()
    with _threads(config.threads), device:
        network = random_network(config, model, classes).eval()
        if device.type == "cpu":
            with torch.no_grad():
                one = _seconds(lambda: network.stem(torch.rand(1, 3, size, size)), device)
            batch = max(1, min(batch, int(PASS_SECONDS / one)))
        while True:
            try:
                images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
                return _unit_costs(network, images, classes, config, device, precision), batch
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2


def _unit_costs(
    network: SplitNetwork,
    images: torch.Tensor,
    classes: int,
    config: Config,
    device: torch.device,
    precision: Precision,
) -> UnitCosts:
    """The seconds of one image where the stem gets ``images`` (B,3,H,W) at a time."""
    with torch.no_grad():
        features = network.stem(images)
    # A fully connected head reads its weights once per batch, so the head always gets the config's batch size.
    features = features.repeat(math.ceil(config.batch_size / len(images)), 1, 1, 1)[: config.batch_size]

    def forward(part: nn.Module, x: torch.Tensor) -> float:
        with torch.no_grad():
            return _seconds(lambda: part(x), device) / len(x)

    def backward(part: nn.Module, x: torch.Tensor, forward_seconds: float) -> float:
        x = x.detach().requires_grad_(True)
        both = _seconds(lambda: torch.autograd.grad(part(x).sum(), x), device) / len(x)
        return max(0.0, both - forward_seconds)

    with evaluating(network):
        stem, head = forward(network.stem, images), forward(network.head, features)
        full = Passes(stem, head, backward(network.stem, images, stem), backward(network.head, features, head))
        mixed = full
        if precision != "float32":
            targets = torch.zeros(len(images), dtype=torch.int64)
            before = _whole(network, images, targets, device)
            with fast_passes(network, images.shape, precision):
                after = _whole(network, images, targets, device)
            faster, faster_back = (now / then for now, then in zip(after, before, strict=True))
            mixed = Passes(
                stem * faster, head * faster, full.stem_backward * faster_back, full.head_backward * faster_back
            )

    def train_stem() -> None:
        network.stem(images).sum().backward()

    head_alone = SplitNetwork(nn.Identity(), network.head, multilabel=network.multilabel)
    batch = features[: config.guidance.training.batch_size].requires_grad_(True)

    def train_head(guidance: GuidanceSettings | None) -> float:
        def step() -> None:
            training_loss(head_alone, batch, classes, guidance, config.suppression).backward()

        return _seconds(step, device) / len(batch)

    def train_whole(guidance: GuidanceSettings | None) -> float:
        def step() -> None:
            training_loss(network, images, classes, guidance, config.suppression).backward()

        return _seconds(step, device) / len(images)

    stem_seconds, head_seconds = _seconds(train_stem, device) / len(images), train_head(None)
    added = {}
    for kind, guidance in guidance_units(config).items():
        if kind in MODES:
            added[kind] = train_head(guidance) - head_seconds
        else:
            # These losses may run the stem again, or need gradients down to the image.
            added[kind] = train_whole(guidance) - train_whole(None)
    added = {kind: max(0.0, spent) for kind, spent in added.items()}
    return UnitCosts(full, mixed, stem_seconds + head_seconds, added)


def _whole(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, device: torch.device
) -> tuple[float, float]:
    """Seconds of a forward pass, and of the gradient behind it."""
    forward = _seconds(lambda: forward_pass(network, images), device)
    both = _seconds(lambda: input_gradient(network, images, targets), device)
    return forward, max(both - forward, 1e-9)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``run()``: the median of several calls after a first one. A CPU that needs long makes one call only."""
    spent: list[float] = []
    while len(spent) < 2 or sum(spent[1:]) < PASS_SECONDS:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
        if device.type == "cpu" and spent[0] > PASS_SECONDS / 2:
            return spent[0]
    return median(spent[1:])


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside, torch uses ``number`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
