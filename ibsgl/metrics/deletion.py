"""Curves of the target's probability while pixels of the image are replaced, in a given order.

:func:`deletion_curve` is that of Figure 4: the salient region is deleted at random. The further metrics insertion and deletion
replace pixels in the order of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from ibsgl.networks.chunks import chunked
from ibsgl.networks.split import SplitNetwork, check_batch, evaluating
from ibsgl.randomness import Generators, draw
from ibsgl.suppression import top_fraction_mask

_TENTHS = tuple(i / 10 for i in range(11))


def _check_fractions(fractions: Sequence[float]) -> None:
    rising = all(a < b for a, b in pairwise(fractions))
    if not fractions or not rising or fractions[0] < 0 or fractions[-1] > 1:
        raise ValueError(f"fractions must rise within [0, 1], not {list(fractions)}")


def deletion_curve(
    network: SplitNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    saliency: torch.Tensor,
    *,
    r: float = 0.35,
    fractions: Sequence[float] = _TENTHS,
    generators: Generators = None,
    repeats: int = 5,
    fill: torch.Tensor | float = 0.0,
    chunk: int = 64,
) -> torch.Tensor:
    """Probability of the target after a growing share of the map's top-``r`` region is deleted.

    Args:
        network: runs without gradients, on ``chunk`` images at a time.
        images: (B,3,H,W) in [0, 1].
        targets: (B,) int64.
        saliency: (B,H,W).
        r: the region is the top ⌈r·H·W⌉ pixels of the map. Equal values are taken in row-major order.
        fractions: shares of the region that are deleted, in rising order within [0, 1].
        generators: one for the batch, or one per image. Each image has ``repeats`` random orders.
        repeats: number of random orders per image. Within one order, a deleted pixel stays deleted for all larger fractions.
        fill: what replaces a deleted pixel: 0 for black, or a colour (3,1,1).
        chunk: images per pass. It limits the memory and changes results only by rounding.

    Returns:
        (B, repeats, len(fractions)) in [0, 1].

    Raises:
        ValueError: shapes do not fit, ``fractions`` do not rise within [0, 1], or ``repeats`` or ``chunk`` is below 1.
    """
    check_batch(images, targets)
    if saliency.shape != images.shape[:1] + images.shape[2:]:
        raise ValueError(
            f"saliency must be (B, H, W) = {(len(images), *images.shape[2:])}, not {tuple(saliency.shape)}"
        )
    _check_fractions(fractions)
    if repeats < 1 or chunk < 1:
        raise ValueError(f"repeats and chunk must be at least 1, not {repeats} and {chunk}")
    batch, (height, width) = len(images), images.shape[2:]
    region = top_fraction_mask(saliency, r).flatten(1)
    noise = draw(lambda g: torch.rand(repeats, height * width, generator=g, device=g.device), batch, generators)
    # The noise is below 1, so the region's pixels come before all others in every order.
    order = noise.to(images.device).masked_fill(~region[:, None], 2.0).argsort(dim=-1, stable=True)
    turn = turns(order)
    area = int(region[0].sum())
    counts = torch.tensor([round(fraction * area) for fraction in fractions], device=order.device)
    background = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    return replaced_curve(network, images, background, targets, turn, counts, area, chunk=chunk)


def turns(order: torch.Tensor) -> torch.Tensor:
    """Pixels in the order in which they are replaced (…, N) → the turn of each pixel (…, N), from 0."""
    numbers = torch.arange(order.shape[-1], device=order.device)
    return torch.empty_like(order).scatter_(-1, order, numbers.expand_as(order))


def replaced_curve(
    network: SplitNetwork,
    images: torch.Tensor,
    replacement: torch.Tensor,
    targets: torch.Tensor,
    turn: torch.Tensor,
    counts: torch.Tensor,
    area: int,
    *,
    chunk: int,
) -> torch.Tensor:
    """Probability of the target after a growing number of pixels is replaced.

    Args:
        network: runs without gradients, on ``chunk`` images at a time.
        images: (B,3,H,W) in [0, 1].
        replacement: what replaces a pixel: a colour (3,1,1), or images (B,3,H,W).
        targets: (B,) int64.
        turn: (B, R, H·W) int64, the turn of each pixel in each of R orders, from 0.
        counts: (P,) int64, in rising order: how many pixels are replaced.
        area: pixels that are ever replaced. With 0 or ``area`` replaced pixels all orders give one image, which needs one pass.
        chunk: images per pass.

    Returns:
        (B, R, P) in [0, 1].
    """
    (batch, repeats), points, (height, width) = turn.shape[:2], len(counts), images.shape[2:]
    partly = (counts > 0) & (counts < area)
    first = (torch.arange(repeats, device=turn.device) == 0)[:, None]
    needed = (first | partly).flatten().repeat(batch).nonzero()[:, 0]
    others = replacement.expand_as(images)

    with evaluating(network), torch.inference_mode():

        def run(start: int, stop: int) -> torch.Tensor:
            number = needed[start:stop]
            image, repeat, step = number // (repeats * points), number // points % repeats, number % points
            replaced = (turn[image, repeat] < counts[step, None]).view(-1, 1, height, width)
            logits = network(torch.where(replaced, others[image], images[image]))
            return network.probabilities(logits).gather(1, targets[image, None])[:, 0].float()

        parts = list(chunked(run, len(needed), chunk, images.device))
    curves = torch.zeros(batch * repeats * points, device=images.device)
    curves[needed] = torch.cat(parts) if parts else curves[needed]
    curves = curves.view(batch, repeats, points)
    return torch.where(partly, curves, curves[:, :1])


def area_under(curve: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    """Trapezoidal area under curves (…, F) over ``fractions`` (F): (…,), in [0, 1]. It is lower if the region matters more."""
    _check_fractions(fractions)
    if curve.shape[-1] != len(fractions):
        raise ValueError(f"the curve has {curve.shape[-1]} points and there are {len(fractions)} fractions")
    return torch.trapezoid(curve, torch.tensor(fractions, dtype=curve.dtype, device=curve.device), dim=-1)
