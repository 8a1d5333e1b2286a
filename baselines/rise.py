"""RISE (Petsiuk, Das & Saenko, BMVC 2018): the mean of random masks, weighted by the scores of the masked images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, check_batch, chunked, evaluating, forward_pass, same_image_groups
from ibsgl.randomness import Generators, draw


@dataclass(frozen=True)
class RISE:
    """RISE with N random masks M_i and the target's probability f (softmax, or sigmoid on a multi-label network)::

        S(λ) = 1 / (N p) Σ_i f(x ∘ M_i) M_i(λ)        (Eq. 6, E[M] = p)

    A mask starts as a grid of ``cells`` × ``cells`` independent bits, which are 1 with probability p. It is resized bilinearly
    to (cells + 1)⌈H/cells⌉ × (cells + 1)⌈W/cells⌉ and cropped to H×W at a random shift of less than one cell (§3.2). In the
    outermost half cell of the resized grid, the value is that of the nearest bit. The authors' resize mirrors the grid there.

    The passes do not depend on the class. If an image is in neighbouring places of the batch with several targets and the same
    draw, its passes are run once for all targets.

    Args:
        masks: number of masks (published: 4000 for VGG-16, 8000 for ResNet-50).
        cells: cells of the grid along each side (published: 7).
        p: probability that a cell is shown (published: 0.5).
        fill: what is behind a mask: ``black``, as in the paper, or ``mean``, the colour that normalises to zero, as in
            the authors' code.
        chunk: images per pass. It limits the memory and changes results only by rounding.
    """

    label: ClassVar[str] = "RISE"
    requires: ClassVar[frozenset[str]] = frozenset()
    masks: int = 8000
    cells: int = 7
    p: float = 0.5
    fill: str = "black"
    chunk: int = 64

    def __post_init__(self):
        for field in ("masks", "cells", "chunk"):
            if getattr(self, field) < 1:
                raise ValueError(f"rise: {field} must be at least 1, not {getattr(self, field)}")
        if not 0 < self.p <= 1:
            raise ValueError(f"rise: p must be above 0 and at most 1, not {self.p}")
        if self.fill not in ("black", "mean"):
            raise ValueError(f"rise: fill must be black or mean, not {self.fill!r}")

    def cost(self, channels: int) -> Cost:
        """One pass for every mask. The classes of an image share them."""
        return Cost(image=Passes(stem=1, head=1) * self.masks, mixed=True, within_bound=True)

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) in [0, 1/p], in units of the probability."""
        check_batch(images, targets)
        # All numbers are drawn before the first mask is made, so that the chunk size does not change them.
        draws = draw(self._draw, len(images), generator).to(images.device)
        new = same_image_groups(images).diff().bool() | (draws[1:] != draws[:-1]).flatten(1).any(1)
        starts = [0, *(new.nonzero()[:, 0] + 1).tolist(), len(images)]
        size = images.shape[-2:]
        saliency = images.new_zeros(len(images), size[0] * size[1])
        with evaluating(network), torch.no_grad():
            fill = network.mean.to(images) if self.fill == "mean" else images.new_zeros(3, 1, 1)
            for start, end in pairwise(starts):
                run = partial(self._weighted_masks, network, images[start], targets[start:end], fill, draws[start])
                for part in chunked(run, self.masks, self.chunk, images.device):
                    saliency[start:end] += part
        return (saliency / (self.masks * self.p)).unflatten(1, size)

    def _weighted_masks(
        self,
        network: SplitNetwork,
        image: torch.Tensor,
        targets: torch.Tensor,
        fill: torch.Tensor,
        numbers: torch.Tensor,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Σ_i f(x ∘ M_i) M_i (k,H·W) over the masks from ``start`` to ``stop``, for one image (3,H,W) and its targets (k,)."""
        masks = self._masks(numbers[start:stop], image.shape[-2:]).to(image)
        logits = forward_pass(network, torch.lerp(fill, image, masks[:, None]))
        # Half precision is enough for the passes, but not for a sum over thousands of masks.
        with torch.autocast(image.device.type, enabled=False):
            return network.probabilities(logits)[:, targets].to(masks).T @ masks.flatten(1)

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        """Uniform numbers in [0,1), (N, cells² + 2): for each mask its cells, row by row, and its two shifts."""
        return torch.rand(self.masks, self.cells**2 + 2, generator=generator, device=generator.device)

    def _masks(self, numbers: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Masks (n,H,W) in [0,1] from ``numbers`` (n, cells² + 2) of :meth:`_draw`."""
        grids = (numbers[:, :-2] < self.p).to(numbers).unflatten(1, (1, self.cells, self.cells))
        cell = [math.ceil(side / self.cells) for side in size]
        large = nn.functional.interpolate(
            grids, [(self.cells + 1) * side for side in cell], mode="bilinear", align_corners=False
        )[:, 0]
        # Rounding can give cell instead of cell − 1.
        places = [
            (numbers[:, axis, None] * cell[axis]).long().clamp_max(cell[axis] - 1)
            + torch.arange(size[axis], device=numbers.device)
            for axis in (-2, -1)
        ]
        index = torch.arange(len(numbers), device=numbers.device)
        return large[index[:, None, None], places[0][:, :, None], places[1][:, None, :]]
