"""The maps that guided training teaches.

The paper teaches L^ib, the map of the information bottleneck. The other teachers show whether it is L^ib that has an effect.
All maps are made once, before the training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn

from ibsgl.randomness import generator

# n pairs → (n,H,W) bool: where each pair's object is.
Regions = Callable[[pd.DataFrame], torch.Tensor]
# (L^ib (N,h,w) of the N pairs, the pairs, the training seed, regions) → (N,h,w) ≥ 0.
Teacher = Callable[[torch.Tensor, pd.DataFrame, int, Regions | None], torch.Tensor]

# Regions have the size of the image, so only this many are in memory at a time.
_REGIONS = 64


def bottleneck(l_ib: torch.Tensor, pairs: pd.DataFrame, seed: int, regions: Regions | None = None) -> torch.Tensor:
    """L^ib (N,h,w) itself, as in the paper."""
    return l_ib


def shuffled(l_ib: torch.Tensor, pairs: pd.DataFrame, seed: int, regions: Regions | None = None) -> torch.Tensor:
    """(N,h,w): for every pair the L^ib of another image; see :func:`other_pairs`."""
    return l_ib[other_pairs(pairs, seed)]


def uniform(l_ib: torch.Tensor, pairs: pd.DataFrame, seed: int, regions: Regions | None = None) -> torch.Tensor:
    """(N,h,w) ones. With ``cross_entropy: binary``, which scales a map by its range, this is a map of zeros."""
    return torch.ones_like(l_ib)


def boxes(l_ib: torch.Tensor, pairs: pd.DataFrame, seed: int, regions: Regions | None = None) -> torch.Tensor:
    """(N,h,w) in [0,1]: the share of each cell that the pair's region covers."""
    if regions is None:
        raise ValueError("guidance.teacher: boxes needs the regions of the training pairs")
    parts = []
    for start in range(0, len(pairs), _REGIONS):
        region = regions(pairs.iloc[start : start + _REGIONS]).to(l_ib)
        parts.append(nn.functional.adaptive_avg_pool2d(region, (l_ib.shape[1], l_ib.shape[2])))
    return torch.cat(parts)


TEACHERS: dict[str, Teacher] = {"bottleneck": bottleneck, "shuffled": shuffled, "uniform": uniform, "boxes": boxes}
# The teacher without a map: only the suppression term of Eq. 10 is left.
NO_TEACHER = "none"


def teacher_maps(
    teacher: str,
    l_ib: torch.Tensor | None,
    pairs: pd.DataFrame,
    *,
    seed: int,
    regions: Regions | None = None,
) -> torch.Tensor | None:
    """The maps (N,h,w) ≥ 0 that N pairs are taught with; ``None`` for the teacher ``none``.

    Args:
        teacher: ``bottleneck``: L^ib. ``shuffled``: L^ib of another image. ``uniform``: a constant map. ``boxes``: the
            object's region. ``none``: no map.
        l_ib: (N,h,w), L^ib of the pairs, in nats. Not needed for ``none``.
        pairs: N rows of the index, of one split.
        seed: the training seed, from which ``shuffled`` draws.
        regions: rows of the index → their regions (n,H,W) bool. Only ``boxes`` needs it.

    Raises:
        ValueError: the teacher is unknown, or it lacks what it needs.
    """
    if teacher == NO_TEACHER:
        return None
    if teacher not in TEACHERS:
        raise ValueError(f"guidance.teacher {teacher!r} is unknown; take one of {', '.join((*TEACHERS, NO_TEACHER))}")
    if l_ib is None:
        raise ValueError(f"guidance.teacher: {teacher} needs L^ib of the training pairs")
    if len(l_ib) != len(pairs):
        raise ValueError(f"there are {len(l_ib)} maps L^ib for {len(pairs)} training pairs; compute them again")
    return TEACHERS[teacher](l_ib, pairs, seed, regions)


# An own image's map costs more than two maps of the own class, so that an exchange which removes the first is never worse.
_OWN_IMAGE, _OWN_CLASS = 3, 1


def other_pairs(pairs: pd.DataFrame, seed: int) -> torch.Tensor:
    """For each of N pairs the row of a pair of another image, of another class where possible.

    The result is a random permutation of the rows, in which rows are exchanged until no exchange of two improves it. No pair
    has its own image's row. If every image shows one class, as few pairs as possible have a row of their own class: none, if
    no class has more than half of the pairs. If one image has more than half of the pairs, no permutation gives all pairs
    another image. Then some rows are used several times.

    Args:
        pairs: N rows with ``image_id`` and ``target``.
        seed: the training seed.

    Returns:
        (N,) int64.

    Raises:
        ValueError: all pairs are of one image.
    """
    images, classes = pd.factorize(pairs["image_id"])[0], pairs["target"].to_numpy()
    if len(np.unique(images)) < 2:
        raise ValueError(
            "guidance.teacher: shuffled needs the maps of at least two training images, and there is only one"
        )
    draws = generator(seed, "shuffled")
    rows = torch.randperm(len(pairs), generator=draws).numpy()

    def cost(of: int | np.ndarray, given: int | np.ndarray) -> np.ndarray:
        """What it costs that the pairs ``of`` have the maps of the pairs ``given``."""
        return _OWN_IMAGE * (images[of] == images[given]) + _OWN_CLASS * (classes[of] == classes[given])

    def best(costs: np.ndarray) -> int:
        """The position of the lowest of these whole numbers, a random one of several."""
        return int((costs + 0.5 * torch.rand(len(costs), generator=draws).numpy()).argmin())

    everyone = np.arange(len(pairs))
    exchanged = True
    while exchanged:
        exchanged = False
        for i in np.flatnonzero(cost(everyone, rows)).tolist():
            change = cost(i, rows) + cost(everyone, rows[i]) - cost(i, rows[i]) - cost(everyone, rows)
            j = best(change)
            if change[j] < 0:
                rows[[i, j]] = rows[[j, i]]
                exchanged = True
    for i in np.flatnonzero(images == images[rows]).tolist():
        rows[i] = best(cost(i, everyone))
    return torch.from_numpy(rows)
