"""Information-bottleneck attribution (Eq. 4–9; Schulz et al. 2020), on the head alone and a whole batch at once.

Noise replaces part of the feature map A; how much is optimised per image so that little information about A is left while
the class is still recognised. What has to be left, summed over channels, is the saliency map L^ib.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from ibsgl.network import SplitNetwork, check_batch, evaluating, upsample
from ibsgl.passes import Cost, Passes
from ibsgl.randomness import Generators, draw

REDUCTIONS = ("mean", "reference", "sum")
# Elements of the map on which the bottleneck's published weights were set (layer4 of ResNet-50 at 224 px).
REFERENCE_ELEMENTS = 2048 * 7 * 7


class FeatureStatistics:
    """Mean and standard deviation of every element of A over the training set (Welford; two halves can be merged).

    They parametrise Q(N) = 𝒩(μ_A, σ_A²) (Section 3.2). ``mean`` and ``std`` are (C,h,w) float32; ``count`` is the number of
    images seen. Accumulated in float64, so the order of the images matters only in the last bits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None

    def update(self, features: torch.Tensor) -> FeatureStatistics:
        """Add a batch A (B,C,h,w)."""
        batch = FeatureStatistics()
        values = features.detach().double()
        batch.count = len(values)
        batch._mean = values.mean(0)
        batch._squares = (values - batch._mean).square().sum(0)
        return self.merge(batch)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add everything ``other`` has seen; returns ``self``."""
        if other.count == 0:
            return self
        if self.count == 0:
            self.count, self._mean, self._squares = other.count, other._mean, other._squares
            return self
        if self._mean.shape != other._mean.shape:
            raise ValueError(
                f"feature maps of different shapes cannot be merged: {tuple(self._mean.shape)}, {tuple(other._mean.shape)}"
            )
        total = self.count + other.count
        difference = other._mean - self._mean
        self._mean = self._mean + difference * (other.count / total)
        self._squares = self._squares + other._squares + difference.square() * (self.count * other.count / total)
        self.count = total
        return self

    @property
    def mean(self) -> torch.Tensor:
        """(C,h,w) float32."""
        self._check()
        return self._mean.float()

    @property
    def std(self) -> torch.Tensor:
        """(C,h,w) float32, the sample standard deviation (n − 1)."""
        self._check()
        return (self._squares / max(self.count - 1, 1)).sqrt().float()

    def _check(self) -> None:
        if self.count == 0:
            raise ValueError("feature statistics are empty: update() them with the training images' feature maps first")

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """The same statistics on ``device``."""
        self._check()
        moved = FeatureStatistics()
        moved.count, moved._mean, moved._squares = self.count, self._mean.to(device), self._squares.to(device)
        return moved

    def state_dict(self) -> dict[str, object]:
        """What :meth:`from_state_dict` reads back."""
        self._check()
        return {"count": self.count, "mean": self._mean, "squares": self._squares}

    @classmethod
    def from_state_dict(cls, state: dict[str, object]) -> FeatureStatistics:
        """Inverse of :meth:`state_dict`."""
        statistics = cls()
        statistics.count, statistics._mean, statistics._squares = state["count"], state["mean"], state["squares"]
        return statistics


def gaussian_blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """``blur(σ, ·)``: (…,h,w) convolved with a fixed Gaussian of standard deviation ``sigma`` cells, edges mirrored.

    The kernel reaches 2σ to each side and the border is mirrored about the outermost cells, as in the bottleneck authors' code.
    """
    if sigma == 0:
        return maps
    for dim in (-2, -1):
        radius = round(2 * sigma)
        offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        size = maps.shape[dim]
        places = torch.arange(size, device=maps.device)
        period = max(2 * (size - 1), 1)
        # As a band matrix, so that a map smaller than the kernel is mirrored again instead of being an error.
        band = maps.new_zeros(size, size)
        for offset, weight in zip(range(-radius, radius + 1), kernel, strict=True):
            mirrored = (places + offset) % period
            band.index_put_((places, torch.minimum(mirrored, period - mirrored) % size), weight, accumulate=True)
        rows = torch.movedim(maps, dim, -1)
        # One product of matrices: on strided maps ``@`` would take as many as there are channels.
        maps = torch.movedim((rows.reshape(-1, size) @ band.T).view(rows.shape), -1, dim)
    return maps


def kl_to_prior(features: torch.Tensor, keep: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """D_KL(P(N|A) ‖ Q(N)) of every element, in nats (the terms of Eq. 7 and 9).

    P = 𝒩(λA + (1−λ)μ, ((1−λ)σ)²) and Q = 𝒩(μ, σ²), so with z = (A − μ)/σ the divergence is
    ½((1−λ)² + λ²z² − 1) − ln(1−λ). All arguments broadcast to (B,C,h,w); ``keep`` is λ in [0, 1).
    """
    z = (features - mean) / std
    damp = 1 - keep
    return 0.5 * (damp.square() + (keep * z).square() - 1) - damp.log()


def bottleneck_saliency(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    statistics: FeatureStatistics,
    *,
    alpha: float = 1000.0,
    gamma: float = 5.0,
    sigma: float = 1.0,
    steps: int = 10,
    lr: float = 1.0,
    samples: int = 10,
    generator: Generators = None,
    reduction: str = "mean",
    multilabel: bool = False,
) -> torch.Tensor:
    """L^ib (Eq. 4–9) of every image of the batch, optimised together and independently of one another.

    Args:
        head: A → logits (B,K), in evaluation mode.
        features: A (B,C,h,w).
        target: (B,) int64.
        statistics: of A over the training set.
        alpha: weight of L_I in Eq. 8.
        gamma: start of γ; λ = blur(σ, sigmoid(γ)).
        sigma: standard deviation of the blur, in cells of the feature map.
        steps, lr: Adam's steps and learning rate on γ.
        samples: draws of the noise per step.
        generator: one for the batch or one per image.
        reduction: how L_I gathers the elements' divergences: ``mean`` over C·h·w, as in the bottleneck authors' code;
            ``reference``, each element weighted as on a 2048×7×7 map, so that a smaller map is squeezed equally hard;
            ``sum``.
        multilabel: L_II is the target's binary cross-entropy instead of the softmax cross-entropy.

    Returns:
        (B,h,w) in nats, ≥ 0, detached.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"bottleneck reduction {reduction!r} is unknown; take one of {', '.join(REDUCTIONS)}")
    if steps < 1 or samples < 1:
        raise ValueError(f"bottleneck steps and samples must be at least 1, not {steps} and {samples}")
    batch, *shape = features.shape
    features = features.detach()
    mean = statistics.mean.to(features)
    # An element that never varies (a dead ReLU) would divide by zero; the authors' code floors the deviation likewise.
    std = statistics.std.to(features).clamp_min(0.01)
    if mean.shape != features.shape[1:]:
        raise ValueError(
            f"statistics are of a {tuple(mean.shape)} feature map, the features are {tuple(features.shape[1:])}"
        )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    parameter = torch.full_like(features, gamma)
    first, second = torch.zeros_like(features), torch.zeros_like(features)

    def keep_of(parameter: torch.Tensor) -> torch.Tensor:
        # λ = 1 would make the divergence infinite, and float32's sigmoid reaches 1 above γ = 17.
        return (1 - 1e-6) * gaussian_blur(parameter.sigmoid(), sigma)

    with torch.enable_grad():
        for step in range(1, steps + 1):
            leaf = parameter.requires_grad_(True)
            keep = keep_of(leaf)
            noise = draw(
                lambda g: torch.randn(samples, *shape, generator=g, device=g.device, dtype=features.dtype),
                batch,
                generator,
            ).to(features.device)
            # λA + (1−λ)(μ + σ·noise), gathered so that few operations see every sample.
            centre, spread = torch.lerp(mean, features, keep), (1 - keep) * std
            noisy = centre[:, None] + spread[:, None] * noise
            logits = head(noisy.flatten(0, 1)).unflatten(0, (batch, samples))
            if multilabel:
                chosen = logits.gather(2, target[:, None, None].expand(-1, samples, 1)).squeeze(2)
                recognition = nn.functional.softplus(-chosen).mean(1)
            else:
                wanted = target[:, None].expand(-1, samples)
                recognition = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)
            divergence = kl_to_prior(features, keep, mean, std).flatten(1)
            information = divergence.mean(1) if reduction == "mean" else divergence.sum(1)
            if reduction == "reference":
                information = information / REFERENCE_ELEMENTS
            # Summed over images: each image's γ has its own gradient, whatever else is in the batch.
            loss = (recognition + alpha * information).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            with torch.no_grad():
                first.lerp_(gradient, 1 - 0.9)
                second.lerp_(gradient.square(), 1 - 0.999)
                update = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                parameter = parameter.detach() - lr * update
    with torch.no_grad():
        # Rounding can leave −1e-8 where λ ≈ 0; a divergence is never negative.
        return kl_to_prior(features, keep_of(parameter), mean, std).sum(1).clamp_min(0)


@dataclass(frozen=True)
class Bottleneck:
    """L^ib of the explained network as a saliency method; the settings are those of :func:`bottleneck_saliency`."""

    label: ClassVar[str] = "Information bottleneck (L^ib)"
    requires: ClassVar[frozenset[str]] = frozenset({"statistics"})
    alpha: float = 1000.0
    gamma: float = 5.0
    sigma: float = 1.0
    steps: int = 10
    lr: float = 1.0
    samples: int = 10
    reduction: str = "mean"

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"bottleneck: reduction must be one of {', '.join(REDUCTIONS)}, not {self.reduction!r}")
        for name in ("steps", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"bottleneck: {name} must be at least 1, not {getattr(self, name)}")
        if self.alpha < 0 or self.sigma < 0 or self.lr <= 0:
            raise ValueError("bottleneck: alpha and sigma must be ≥ 0 and lr > 0")

    def feature_saliency(
        self,
        network: SplitNetwork,
        features: torch.Tensor,
        targets: torch.Tensor,
        statistics: FeatureStatistics,
        generator: Generators = None,
    ) -> torch.Tensor:
        """L^ib (B,h,w) at the feature map's size, from features that the caller already has."""
        return bottleneck_saliency(
            network.head,
            features,
            targets,
            statistics,
            generator=generator,
            multilabel=network.multilabel,
            **asdict(self),
        )

    def cost(self, channels: int) -> Cost:
        """One pass of the stem, then one of the head and its gradient for every draw of every step."""
        return Cost(pair=Passes(stem=1) + Passes(head=1, head_backward=1) * (self.steps * self.samples))

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        *,
        statistics: FeatureStatistics,
    ) -> torch.Tensor:
        """(B,H,W) in nats per cell of the feature map, ≥ 0."""
        check_batch(images, targets)
        with evaluating(network):
            with torch.no_grad():
                features = network.stem(images)
            saliency = self.feature_saliency(network, features, targets, statistics, generator)
        return upsample(saliency, images.shape[-2:])
