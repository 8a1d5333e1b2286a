"""Information-bottleneck attribution (Eq. 4–9; Schulz et al. 2020). It needs only the head, and explains a batch at once.

Noise replaces part of the feature map A. For each image, the amount of noise at each element is optimised: little information
about A should be left, and the class should still be recognised. The information that is left, summed over channels, is the
saliency map L^ib.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypedDict

import torch
from pydantic import Field
from torch import nn

from ibsgl.attribution.cost import Cost, Passes
from ibsgl.networks.split import SplitNetwork, check_batch, evaluating, upsample
from ibsgl.randomness import Generators, listed
from ibsgl.settings import NonNegative, Positive, PositiveReal, Settings

REDUCTIONS = ("mean", "reference", "sum")
# Elements of the feature map for which the bottleneck's published weights were chosen (layer4 of ResNet-50 at 224 pixels).
REFERENCE_ELEMENTS = 2048 * 7 * 7
# Up to this number of cells, a map is blurred by one matrix for both axes. One product per axis would take several times as
# long, because its matrices are tiny.
_SMALL_MAP = 100


class StatisticsState(TypedDict):
    """The state of :class:`FeatureStatistics`: ``count`` images, and two tensors (C,h,w) float64."""

    count: int
    mean: torch.Tensor
    squares: torch.Tensor


class FeatureStatistics:
    """Mean and standard deviation of every element of A over the training set (Welford's algorithm).

    They are the parameters of Q(N) = 𝒩(μ_A, σ_A²) (Section 3.2). ``mean`` and ``std`` are (C,h,w) float32, and ``count`` is the
    number of images. Sums are in float64, so the order of the images changes only the last bits.
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
        """Add the images of ``other``; returns ``self``."""
        if other.count == 0:
            return self
        other_mean, other_squares = other._moments()
        if self.count == 0:
            self.count, self._mean, self._squares = other.count, other_mean, other_squares
            return self
        mean, squares = self._moments()
        if mean.shape != other_mean.shape:
            raise ValueError(
                f"feature maps of different shapes cannot be merged: {tuple(mean.shape)}, {tuple(other_mean.shape)}"
            )
        total = self.count + other.count
        difference = other_mean - mean
        self._mean = mean + difference * (other.count / total)
        self._squares = squares + other_squares + difference.square() * (self.count * other.count / total)
        self.count = total
        return self

    @property
    def mean(self) -> torch.Tensor:
        """(C,h,w) float32."""
        mean, _ = self._moments()
        return mean.float()

    @property
    def std(self) -> torch.Tensor:
        """(C,h,w) float32, the sample standard deviation (n − 1)."""
        _, squares = self._moments()
        return (squares / max(self.count - 1, 1)).sqrt().float()

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean and the sum of the squared deviations from it, (C,h,w) float64; ``ValueError`` if there are no images."""
        if self.count == 0 or self._mean is None or self._squares is None:
            raise ValueError("feature statistics are empty: update() them with the training images' feature maps first")
        return self._mean, self._squares

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """The same statistics on ``device``."""
        mean, squares = self._moments()
        moved = FeatureStatistics()
        moved.count, moved._mean, moved._squares = self.count, mean.to(device), squares.to(device)
        return moved

    def state_dict(self) -> StatisticsState:
        """The state, for :meth:`from_state_dict`."""
        mean, squares = self._moments()
        return {"count": self.count, "mean": mean, "squares": squares}

    @classmethod
    def from_state_dict(cls, state: StatisticsState) -> FeatureStatistics:
        """The statistics with the state of :meth:`state_dict`."""
        statistics = cls()
        statistics.count, statistics._mean, statistics._squares = state["count"], state["mean"], state["squares"]
        return statistics


class GaussianBlur:
    """``blur(σ, ·)``: maps (…,h,w) convolved with a Gaussian of standard deviation σ.

    As in the code of the bottleneck's authors, the kernel reaches 2σ to each side, and the border is mirrored about the
    outermost cells.

    Args:
        sigma: σ in cells. With 0, nothing is blurred.
        like: maps (…,h,w) of the same height, width, type and device as those that are blurred.
    """

    def __init__(self, sigma: float, like: torch.Tensor):
        self._rows, self._columns = (_blur_band(sigma, size, like) for size in like.shape[-2:])

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        """The blurred maps (…,h,w)."""
        return _multiply(self._rows, maps, self._columns.T)

    def gradient(self, slope: torch.Tensor) -> torch.Tensor:
        """The gradient at the blurred maps → the gradient at the maps, both (…,h,w)."""
        return _multiply(self._rows.T, slope, self._columns)


def _blur_band(sigma: float, size: int, like: torch.Tensor) -> torch.Tensor:
    """The matrix (size,size) that blurs along one axis. Each row is the kernel at one place.

    A matrix also works for a map that is smaller than the kernel. Such a map is mirrored several times.
    """
    if sigma == 0:
        return torch.eye(size, device=like.device, dtype=like.dtype)
    radius = round(2 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    places = torch.arange(size, device=like.device)
    period = max(2 * (size - 1), 1)
    band = like.new_zeros(size, size)
    for offset, weight in zip(range(-radius, radius + 1), kernel, strict=True):
        mirrored = (places + offset) % period
        band.index_put_((places, torch.minimum(mirrored, period - mirrored) % size), weight, accumulate=True)
    return band


def _multiply(left: torch.Tensor, maps: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left`` (h,h) · M · ``right`` (w,w) for every map M of ``maps`` (…,h,w)."""
    if maps.shape[-2] * maps.shape[-1] <= _SMALL_MAP:
        return (maps.flatten(-2) @ torch.kron(left, right.T).T).view(maps.shape)
    return left @ (maps @ right)


def kl_to_prior(features: torch.Tensor, keep: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """D_KL(P(N|A) ‖ Q(N)) of every element, in nats (the terms of Eq. 7 and 9).

    P = 𝒩(λA + (1−λ)μ, ((1−λ)σ)²) and Q = 𝒩(μ, σ²). With z = (A − μ)/σ the divergence is
    ½((1−λ)² + λ²z² − 1) − ln(1−λ). All arguments broadcast to (B,C,h,w). ``keep`` is λ in [0, 1).
    """
    z = (features - mean) / std
    damp = 1 - keep
    return 0.5 * (damp.square() + (keep * z).square() - 1) - damp.log()


def kl_slope(features: torch.Tensor, keep: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The derivative of :func:`kl_to_prior` with respect to λ: λ(1 + z²) − 1 + 1/(1 − λ)."""
    z = (features - mean) / std
    return torch.addcmul(keep - 1, keep, z.square()).add_((1 - keep).reciprocal_())


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
    """L^ib (Eq. 4–9) of every image of the batch. An image's map does not depend on the other images.

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
        generator: one for the batch, or one per image.
        reduction: how L_I combines the divergences of the elements. ``mean``: their mean over C·h·w, as in the code of the
            bottleneck's authors. ``sum``: their sum. ``reference``: their sum divided by the number of elements of a 2048×7×7
            map, so that an element has the same weight on maps of all sizes.
        multilabel: L_II is the target's binary cross-entropy instead of the softmax cross-entropy.

    Returns:
        (B,h,w) in nats, ≥ 0, detached.

    Raises:
        ValueError: ``reduction`` is unknown, ``steps`` or ``samples`` is below 1, or ``statistics`` has another shape than A.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"bottleneck reduction {reduction!r} is unknown; take one of {', '.join(REDUCTIONS)}")
    if steps < 1 or samples < 1:
        raise ValueError(f"bottleneck steps and samples must be at least 1, not {steps} and {samples}")
    batch, *shape = features.shape
    # The noise is drawn in this order, and mixing two orders takes several times as long.
    features = features.detach().contiguous()
    mean = statistics.mean.to(features)
    # Without a lower bound, an element that never varies (a dead ReLU) would give a division by zero. The authors' code has
    # the same bound.
    std = statistics.std.to(features).clamp_min(0.01)
    if mean.shape != features.shape[1:]:
        raise ValueError(
            f"statistics are of a {tuple(mean.shape)} feature map, the features are {tuple(features.shape[1:])}"
        )
    generators = listed(generator, batch)
    blur = GaussianBlur(sigma, features)
    weight = alpha / {"mean": mean.numel(), "sum": 1, "reference": REFERENCE_ELEMENTS}[reduction]
    parameter = torch.full_like(features, gamma)
    first, second = torch.zeros_like(features), torch.zeros_like(features)
    difference = features - mean
    # Every step uses the same memory. With one generator, the images share a draw.
    drawn = torch.empty(len(generators), samples, *shape, device=generators[0].device, dtype=features.dtype)
    noisy = features.new_empty(batch, samples, *shape)

    def compute_keep(gate: torch.Tensor) -> torch.Tensor:
        # λ = 1 would make the divergence infinite, and in float32 the sigmoid is 1 above γ = 17.
        return blur(gate).mul_(1 - 1e-6)

    for step in range(1, steps + 1):
        gate = parameter.sigmoid()
        keep = compute_keep(gate)
        noise = _draw(drawn, generators).to(features.device)
        # λA + (1−λ)(μ + σ·noise), with one operation on all samples.
        torch.addcmul(torch.lerp(mean, features, keep)[:, None], ((1 - keep) * std)[:, None], noise, out=noisy)
        slope = _recognition_slope(head, noisy, target, multilabel)
        # By the chain rule: the sample's derivative with respect to λ is A − μ − σ·noise.
        gradient = slope.sum(1).mul_(difference)
        gradient -= torch.mul(slope, noise, out=noisy).sum(1).mul_(std)
        gradient.add_(kl_slope(features, keep, mean, std), alpha=weight)
        gradient = blur.gradient(gradient).mul_(1 - 1e-6)
        gradient.mul_(gate).mul_(1 - gate)
        first.lerp_(gradient, 1 - 0.9)
        second.lerp_(gradient.square_(), 1 - 0.999)
        scale = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        parameter.addcdiv_(first, scale, value=-lr / (1 - 0.9**step))
    # A divergence is never negative. Rounding can give −1e-8 where λ ≈ 0.
    return kl_to_prior(features, compute_keep(parameter.sigmoid()), mean, std).sum(1).clamp_min(0)


def _draw(drawn: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Fill ``drawn`` (D,…) with the next normal numbers of D generators."""
    for part, generator in zip(drawn, generators, strict=True):
        part.normal_(generator=generator)
    return drawn


def _recognition_slope(head: nn.Module, noisy: torch.Tensor, target: torch.Tensor, multilabel: bool) -> torch.Tensor:
    """The gradient (B,S,C,h,w) of the mean of L_II over the samples, summed over the images, at A = ``noisy`` (B,S,C,h,w)."""
    samples = noisy.shape[1]
    with torch.enable_grad():
        # A sum over images, so that an image's gradient does not depend on the other images.
        leaf = noisy.flatten(0, 1).detach().requires_grad_(True)
        logits = head(leaf)
        repeated = target.repeat_interleave(samples)
        if multilabel:
            loss = nn.functional.softplus(-logits.gather(1, repeated[:, None])).sum()
        else:
            loss = nn.functional.cross_entropy(logits, repeated, reduction="sum")
        (slope,) = torch.autograd.grad(loss / samples, leaf)
    return slope.view_as(noisy)


class Bottleneck(Settings):
    """L^ib of the explained network as a saliency method, with the settings of :func:`bottleneck_saliency`."""

    label: ClassVar[str] = "Information bottleneck (L^ib)"
    requires: ClassVar[frozenset[str]] = frozenset({"statistics"})

    alpha: NonNegative = Field(1000.0, description="α of Eq. 8, the weight of L_I (published: 1000)")
    gamma: float = Field(5.0, allow_inf_nan=False, description="where γ starts; λ = blur(σ, sigmoid(γ)) (published: 5)")
    sigma: NonNegative = Field(1.0, description="σ of the blur, in cells of the feature map (published: 1)")
    steps: Positive = Field(10, description="Adam's steps on γ, for each image")
    lr: PositiveReal = Field(1.0, description="Adam's learning rate")
    samples: Positive = Field(10, description="draws of the noise in each step")
    reduction: Literal["mean", "reference", "sum"] = Field(
        "mean", description="how L_I combines the divergences of the map's elements"
    )

    def feature_saliency(
        self,
        network: SplitNetwork,
        features: torch.Tensor,
        targets: torch.Tensor,
        statistics: FeatureStatistics,
        generator: Generators = None,
    ) -> torch.Tensor:
        """L^ib (B,h,w) at the size of the feature map, from ``features`` (B,C,h,w) of the stem."""
        return bottleneck_saliency(
            network.head,
            features,
            targets,
            statistics,
            generator=generator,
            multilabel=network.multilabel,
            **self.model_dump(),
        )

    def cost(self, channels: int) -> Cost:
        """One pass of the stem, and one pass of the head and its gradient for every draw in every step."""
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
        maps = self.coarse(network, images, targets, generator, statistics=statistics)
        return upsample(maps, images.shape[-2:])

    def coarse(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        *,
        statistics: FeatureStatistics,
    ) -> torch.Tensor:
        """L^ib (B,h,w) at the size of the feature map, from images."""
        check_batch(images, targets)
        with evaluating(network):
            with torch.no_grad():
                features = network.stem(images)
            return self.feature_saliency(network, features, targets, statistics, generator)
