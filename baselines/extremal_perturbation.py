"""Extremal Perturbation (Fong, Patrick & Vedaldi, ICCV 2019): the smooth mask of a given area with the highest target logit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

import torch
from torch import nn
from tqdm import tqdm

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, check_batch, chunked, evaluating, input_gradient
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class ExtremalPerturbation:
    """Extremal Perturbation, preservation game: one mask m for each image and each area a::

        m_a = argmax_m  f(m ⊗ x) − λ ‖vecsort(m) − r_a‖² / |Ω|        (Eq. 4)

    f is the target's logit. m ⊗ x is x where m = 1, and blurred x where m = 0. Between them, ``levels`` degrees of blur are
    interpolated. vecsort(m) has the pixels of m in ascending order. r_a is 0 for the smaller (1 − a)|Ω| of them and 1 for
    the rest, so m becomes binary with the area a·|Ω|. m is the smooth max-convolution (Eq. 6) of parameters in [0,1] on a
    grid of ``grid_spacing`` pixels with a bell of ``sigma`` pixels. The parameters start at 1 and are optimised by gradient
    steps with momentum 0.9. An image's mask does not depend on the other images. λ grows by a factor in every step. In even
    steps (the first is step 0) the image is flipped, as in the authors' jitter. Nothing is random.

    The settings are those of the authors' published code for 224 pixels. ``grid_spacing``, ``sigma`` and ``blur`` are in
    pixels, so scale them for images of another size. As in that code, dampening equals the momentum, and beyond the border a
    blurred image has the colour that normalisation maps to zero. As in the paper, the area is a fraction of the image. In
    that code it is a fraction of a larger mask, the image with a margin (``padded``).

    Args:
        areas: fractions of the image, or of the padded mask; the masks of several are summed. Published: (0.1,), and in the
            authors' benchmark on VOC 2007 (0.025, 0.05, 0.1, 0.2) with ``smooth=0.09``.
        iterations: gradient steps (published: 800).
        lr: learning rate (published: 0.01).
        weight: λ in the first step (published: 300). With small logits take a smaller one.
        growth: factor of λ per step (published: 1.0035).
        grid_spacing: pixels between the mask's parameters (published: 7).
        sigma: width of the bell in pixels (published: 21).
        levels: degrees of blur, with the sharp image (published: 8).
        blur: σ of the strongest blur in pixels (published: 20).
        smooth: σ of the Gaussian that smooths the final masks, as a fraction of the image's shorter side. 0: no smoothing.
        padded: whether ``areas`` are fractions of the padded mask, as in the authors' code: the image and a margin of about
            ``sigma`` pixels, which is cut off at the end. An image of 224×224 pixels has a padded mask of 260×260. So 0.1
            of it is 13.5 % of the image where it lies inside. The number of passes is the same.
        chunk: masks per pass. It limits the memory. In float64 it does not change results. In float32 another order of a sum
            can change a step: ``docs/decisions.md`` has the measured differences.
    """

    label: ClassVar[str] = "Extremal Perturbation"
    requires: ClassVar[frozenset[str]] = frozenset()
    areas: tuple[float, ...] = (0.1,)
    iterations: int = 800
    lr: float = 0.01
    weight: float = 300.0
    growth: float = 1.0035
    grid_spacing: int = 7
    sigma: float = 21.0
    levels: int = 8
    blur: float = 20.0
    smooth: float = 0.0
    padded: bool = False
    chunk: int = 16

    def __post_init__(self):
        def refuse(field: str, demand: str) -> NoReturn:
            raise ValueError(f"extremal_perturbation: {field} must be {demand}, not {getattr(self, field)}")

        if not self.areas or not all(0 < area < 1 for area in self.areas):
            refuse("areas", "one or more fractions between 0 and 1")
        for field in ("iterations", "grid_spacing", "chunk"):
            if getattr(self, field) < 1:
                refuse(field, "at least 1")
        for field in ("lr", "weight", "growth", "sigma", "blur"):
            if not getattr(self, field) > 0:
                refuse(field, "above 0")
        if self.levels < 2:
            refuse("levels", "at least 2")
        if self.smooth < 0:
            refuse("smooth", "at least 0")

    def cost(self, channels: int) -> Cost:
        """One pass and its gradient for every area in every iteration."""
        every = Passes(stem=1, head=1, stem_backward=1, head_backward=1)
        return Cost(pair=every * (self.iterations * len(self.areas)), mixed=True)

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → sum of the masks of the A areas (B,H,W) in [0,A]. ``generator`` is not used."""
        total = self.masks(network, images, targets).sum(1)
        if self.smooth > 0:
            total = _blur(total, self.smooth * min(total.shape[-2:]))
        return total

    def masks(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The masks (B,A,H,W) in [0,1] of the A areas, before smoothing."""
        check_batch(images, targets)
        number = len(self.areas)
        areas = torch.tensor(self.areas, dtype=torch.float64, device=images.device).repeat(len(images))
        images, targets = images.detach().repeat_interleave(number, 0), targets.repeat_interleave(number)
        with evaluating(network), torch.enable_grad():

            def run(start: int, stop: int) -> torch.Tensor:
                return self._optimise(network, images[start:stop], targets[start:stop], areas[start:stop])

            parts = list(chunked(run, len(images), self.chunk, images.device))
        return torch.cat(parts).unflatten(0, (-1, number))

    def _optimise(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, areas: torch.Tensor
    ) -> torch.Tensor:
        """Masks (n,H,W) of ``images`` (n,3,H,W), each for one target and one area."""
        size = images.shape[-2:]
        smooth_max = _SmoothMaxConvolution(size, self.grid_spacing, self.sigma, padded=self.padded).to(images)
        pyramid = self._pyramid(images, network.mean.to(images))
        reference = _reference(areas, smooth_max.size.numel()).to(images)
        parameters = images.new_ones(len(images), *smooth_max.grid)
        velocity, weight = None, self.weight
        for t in tqdm(range(self.iterations), desc="masks", leave=False, disable=None):
            parameters.requires_grad_(True)
            masks = smooth_max(parameters)
            perturbed = _apply(pyramid, smooth_max.inside(masks))
            if t % 2 == 0:
                perturbed = perturbed.flip(-1)
            # Its gradient with respect to the parameters is that of the logits' sum. A sum over images, so that an image's
            # gradient does not depend on the other images.
            reward = (perturbed * input_gradient(network, perturbed, targets)).sum()
            (gradient,) = torch.autograd.grad(reward - weight * _area_loss(masks, reference).sum(), parameters)
            velocity = gradient if velocity is None else 0.9 * velocity + 0.1 * gradient
            parameters = (parameters.detach() + self.lr * velocity).clamp_(0, 1)
            weight *= self.growth
        return smooth_max.inside(smooth_max(parameters))

    def _pyramid(self, images: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Images (n,3,H,W) with ``levels`` degrees of blur, from the strongest to none: (n,levels,3,H,W)."""
        sigmas = torch.linspace(self.blur, 0, self.levels)[:-1].tolist()
        return torch.stack([*(_blur(images - mean, sigma) + mean for sigma in sigmas), images], 1)


class _Context(Protocol):
    """The values that :class:`_SmoothMax` keeps for its backward pass."""

    rows: int

    @property
    def saved_tensors(self) -> tuple[torch.Tensor, ...]: ...

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _SmoothMax(torch.autograd.Function):
    """Σ_k x_k e^{20 x_k} / Σ_k e^{20 x_k} over the products x = near (n,K,L) × bell (K,S): (n,S,L).

    Built-in operations would keep several tensors of n·K·S·L numbers for the backward pass, and would be four times slower.
    Here x is computed again, one row of the neighbourhood at a time. On a CPU this is done one image at a time, so that x stays
    in the cache.
    """

    @staticmethod
    def forward(ctx: _Context, near: torch.Tensor, bell: torch.Tensor, rows: int) -> torch.Tensor:
        parts = [_smooth_max(piece, bell, rows) for piece in _piecewise(near)]
        maximum, denominator = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(near, bell, maximum, denominator)
        ctx.rows = rows
        return maximum

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        near, bell, maximum, denominator = ctx.saved_tensors
        pieces = (_piecewise(tensor) for tensor in (near, maximum, denominator, gradient))
        parts = [_smooth_max_gradient(piece[0], bell, ctx.rows, *piece[1:]) for piece in zip(*pieces, strict=True)]
        return torch.cat(parts), None, None


def _piecewise(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """On a CPU one image at a time, on other devices the whole batch."""
    return tensor.split(1 if tensor.device.type == "cpu" else len(tensor))


def _products(
    near: torch.Tensor, bell: torch.Tensor, rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each of the ``rows``: its part of ``bell`` (k,S), x (n,k,S,L) and e^{20 x}. The next row overwrites the last two."""
    shape = len(near), len(bell) // rows, bell.shape[1], near.shape[2]
    x, powers = near.new_empty(shape), near.new_empty(shape)
    for part, weights in zip(near.chunk(rows, 1), bell.chunk(rows), strict=True):
        torch.mul(part[:, :, None], weights[:, :, None], out=x)
        torch.mul(x, 20, out=powers)
        yield weights, x, powers.exp_()


def _smooth_max(near: torch.Tensor, bell: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smooth maximum and its denominator, (n,S,L) each."""
    numerator = near.new_zeros(len(near), bell.shape[1], near.shape[2])
    denominator = torch.zeros_like(numerator)
    for _, x, powers in _products(near, bell, rows):
        denominator += powers.sum(1)
        numerator += powers.mul_(x).sum(1)
    return numerator / denominator, denominator


def _smooth_max_gradient(
    near: torch.Tensor,
    bell: torch.Tensor,
    rows: int,
    maximum: torch.Tensor,
    denominator: torch.Tensor,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """The gradient of ``near`` (n,K,L) from the gradient of the smooth maximum (n,S,L)."""
    # ∂/∂x_k = (1 + 20 (x_k − maximum)) e^{20 x_k} / denominator, as a constant and a slope in x_k.
    constant = (1 - 20 * maximum) * gradient / denominator
    slope = 20 * gradient / denominator
    parts = []
    for weights, x, powers in _products(near, bell, rows):
        powers *= torch.addcmul(constant[:, None], x, slope[:, None], out=x)
        parts.append(powers.mul_(weights[:, :, None]).sum(2))
    return torch.cat(parts, 1)


class _SmoothMaxConvolution(nn.Module):
    """Parameters (n,h,w) in [0,1] on a grid of ``grid_spacing`` pixels → masks (n,H,W) in [0,1] (Eq. 6, temperature 1/20).

    The value of pixel u is the smooth maximum of k(‖u − spacing·v‖/sigma) p_v over the grid's places v near u, with
    k(z) = exp(−2 max(0, z − 1/2)²). Beyond the grid, p is 0. The smooth maximum of x is Σ x e^{20x} / Σ e^{20x}. u's own place
    is u / spacing, rounded down. The places near u are at most 1 + ⌈sigma/spacing⌉ rows and columns away from it.

    A padded mask has ⌈2·sigma/spacing⌉ − ⌈sigma/spacing⌉ further cells on each side of the grid, without parameters, and ends
    with the first row and column of its last cell, as in the authors' code.

    Attributes:
        size: (H,W) of the masks, with the margin if they are padded.
        grid: (h,w) of the parameters.
    """

    bell: torch.Tensor

    def __init__(self, size: torch.Size, spacing: int, sigma: float, *, padded: bool = False):
        super().__init__()
        self.image_size, self.spacing = size, spacing
        self.grid = tuple(math.ceil(side / spacing) for side in size)
        self.radius = 1 + math.ceil(sigma / spacing)
        self.margin = math.ceil(2 * sigma / spacing) - math.ceil(sigma / spacing) if padded else 0
        self.cells = tuple(side + 2 * self.margin for side in self.grid)
        self.size = torch.Size(spacing * side - spacing + 1 for side in self.cells) if padded else size
        # k depends on the offset of v from u's own place, and on the position of u in its cell (the phase).
        # So the bell has the shape (offsets, phases).
        phase = torch.arange(spacing, dtype=torch.float64)
        offset = spacing * torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        squares = (phase - offset[:, None]) ** 2
        distance = (squares[:, None, :, None] + squares[None, :, None, :]).sqrt().flatten(2).flatten(0, 1)
        self.register_buffer("bell", torch.exp(-2 * (distance / sigma - 0.5).clamp_min(0) ** 2))

    def forward(self, parameters: torch.Tensor) -> torch.Tensor:
        """Parameters (n,h,w) → masks (n,H,W)."""
        width = 2 * self.radius + 1
        near = nn.functional.unfold(parameters[:, None], width, padding=self.radius + self.margin)
        masks = (
            _SmoothMax.apply(near, self.bell, width).unflatten(2, self.cells).unflatten(1, (self.spacing, self.spacing))
        )
        masks = masks.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
        return masks[:, : self.size[0], : self.size[1]]

    def inside(self, masks: torch.Tensor) -> torch.Tensor:
        """The part (n,H,W) of ``masks`` that lies on the image."""
        start = self.spacing * self.margin
        return masks[:, start : start + self.image_size[0], start : start + self.image_size[1]]


def _apply(pyramid: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pyramid (n,L,3,H,W) at the height (L − 1)·mask, interpolated linearly between levels: (n,3,H,W)."""
    levels = pyramid.shape[1]
    height = (levels - 1) * masks[:, None, None]
    below = height.detach().floor().clamp_(0, levels - 2)
    index = below.long().expand(-1, -1, *pyramid.shape[2:])
    return torch.lerp(pyramid.gather(1, index), pyramid.gather(1, index + 1), height - below)[:, 0]


def _reference(areas: torch.Tensor, pixels: int) -> torch.Tensor:
    """r_a for each of ``areas`` (n,) float64: (n,pixels). Zeros come first, then ⌈a·pixels⌉ ones."""
    zeros = ((1 - areas) * pixels + 1e-6).floor()
    return (torch.arange(pixels, device=areas.device) >= zeros[:, None]).to(areas)


def _area_loss(masks: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean over pixels of (vecsort(m) − r_a)² for masks (n,H,W): (n,)."""
    return (masks.flatten(1).sort(stable=True)[0] - reference).square().mean(1)


def _blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps (…,H,W) smoothed by a Gaussian whose sum is 1. It ends at 4 sigma. Beyond the border, maps are zero."""
    reach = math.ceil(4 * sigma)

    def matrix(side: int) -> torch.Tensor:
        bell = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
        places = torch.arange(side)
        distance = (places[:, None] - places).abs()
        row = torch.where(distance <= reach, torch.exp(-(distance.double() ** 2) / (2 * sigma**2)), 0)
        return (row / bell.sum()).to(maps)

    with torch.autocast(maps.device.type, enabled=False):
        return matrix(maps.shape[-2]) @ maps @ matrix(maps.shape[-1])
