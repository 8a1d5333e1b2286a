"""Model randomisation: does the map change when the network's weights become random, from the head down?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ibsgl.metrics.further.base import PairEvidence, Requires, too_many_passes
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.randomness import derive_seed
from ibsgl.settings import Positive

# Side of the window of the structural similarity, and its constants for values in [0,1] (Wang et al. 2004).
_WINDOW, _C1, _C2 = 7, 0.01**2, 0.03**2


def layers_of(network: SplitNetwork) -> list[tuple[str, nn.Module]]:
    """The layers with parameters of their own, by name, from the head down to the input."""
    found = [
        (name, module) for name, module in network.named_modules() if next(module.parameters(False), None) is not None
    ]
    return found[::-1]


def randomise(layer: nn.Module, seed: int) -> None:
    """Give ``layer`` new weights, in place: its own initial ones or, without those, its weights in a random order.

    The draw is made on the CPU, so that it is the same on all devices. No other random state changes.
    """
    device = next(layer.parameters(False)).device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        layer.cpu()
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
        else:
            for parameter in layer.parameters(False):
                values = parameter.flatten()
                parameter.copy_(values[torch.randperm(len(values))].view_as(parameter))
        layer.to(device)


def cascade(network: SplitNetwork, stages: int, seed: int) -> Iterator[SplitNetwork]:
    """Networks in which more and more layers are random, from the head down. ``network`` itself is not changed.

    Stage k of K has ⌈k·L / K⌉ of the L layers random; with K ≥ L there is one stage per layer. All stages are one copy of
    ``network`` that changes, so each must be used before the next one is taken.
    """
    changed = copy.deepcopy(network)
    layers = layers_of(changed)
    stages, done = min(stages, len(layers)), 0
    for stage in range(1, stages + 1):
        until = math.ceil(stage * len(layers) / stages)
        for name, layer in layers[done:until]:
            randomise(layer, derive_seed(seed, name))
        done = until
        with evaluating(changed):
            yield changed


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 along the last axis of (B,N); equal values share the mean of their ranks."""
    rising = values.sort(dim=-1).values
    below, upto = (torch.searchsorted(rising, values, right=right) for right in (False, True))
    return (below + upto + 1).double() / 2


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of two maps each (B,H,W): (B,) in [-1,1], NaN where a map is constant."""
    a, b = (_ranks(maps.flatten(1).contiguous()) for maps in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def structural_similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004) of two maps each (B,H,W), each scaled to [0,1]: (B,) in [-1,1], NaN where a map is constant.

    Windows of 7×7 equal weights that lie wholly in the map, and sample covariances, as scikit-image's default has them.
    """

    def scaled(maps: torch.Tensor) -> torch.Tensor:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return ((maps - low).double() / (high - low).double())[:, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(values, _WINDOW, stride=1)

    a, b = scaled(first), scaled(second)
    mean_a, mean_b = mean(a), mean(b)
    sample = _WINDOW**2 / (_WINDOW**2 - 1)
    variance_a, variance_b = sample * (mean(a * a) - mean_a**2), sample * (mean(b * b) - mean_b**2)
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    similar = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (similar / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))).mean((1, 2, 3))


_SIMILARITIES = {"spearman": spearman, "ssim": structural_similarity}


@dataclass(frozen=True)
class ModelRandomisation:
    """Model parameter randomisation (Adebayo et al., NeurIPS 2018): mean similarity of the map to those of random networks.

    The layers get random weights one after the other, from the head down, and stay random (the cascading test). From the head
    down is the reverse of the order in which the modules are defined. Batch normalisation has no random values: it gets weight
    1, bias 0 and its initial running statistics. The bottleneck keeps the statistics of the features before. After each stage
    the method makes its map again, with the same draws. A method that explains the network must change its map: a
    high similarity means that the map shows the image and not what the network has learned. A constant map has no order, so
    its similarity to the original is 0. An original that is constant has no value.

    Args:
        similarity: `spearman`: rank correlation of the maps' values. `ssim`: structural similarity of the maps scaled to [0,1].
        stages: stages of the cascade, at equal distances in the list of layers. Maps are made at each. At most one per layer.
        threshold: a method whose mean similarity is at least this is marked: it does not notice.
        max_passes: methods with more passes per map than this, or an unknown number, get no value. `null`: no limit.
    """

    label: ClassVar[str] = "Model randomisation"
    higher_is_better: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    requires: ClassVar[Requires] = "method"
    for_tables: ClassVar[frozenset[str]] = frozenset({"threshold"})
    caution: ClassVar[str] = (
        "A method with random masks has the same masks for all networks, so with few masks it can be marked too."
    )
    similarity: Literal["spearman", "ssim"] = "spearman"
    stages: Positive = 5
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.8
    max_passes: Positive | None = None

    def further_maps(self) -> int:
        """One map after each stage."""
        return self.stages

    def forward_passes(self) -> int:
        """No others."""
        return 0

    def unsuited(self, passes: float | None) -> str:
        """Why a method with so many passes per map is left out."""
        return too_many_passes(passes, self.max_passes)

    def mark(self, mean: float) -> str:
        """What the table says beside a method with this mean similarity."""
        return "does not notice" if mean >= self.threshold else ""

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) in [-1,1]."""
        network, images, explain = evidence.with_method()
        own, similarity = evidence.saliency, _SIMILARITIES[self.similarity]
        values = [
            similarity(own, explain(changed, images)).nan_to_num(0.0)
            for changed in cascade(network, self.stages, evidence.seed)
        ]
        constant = own.amax((1, 2)) == own.amin((1, 2))
        return torch.stack(values).mean(0).masked_fill(constant, torch.nan)
