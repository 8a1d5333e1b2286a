"""The maps that guided training teaches.

The paper teaches L^ib, the map of the information bottleneck. The other teachers show whether it is L^ib that has an effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from ibsgl.guidance.registry import Teacher
from ibsgl.randomness import generator


@dataclass(frozen=True)
class BottleneckMap:
    """L^ib of the image, as in the paper."""

    requires: ClassVar[frozenset[str]] = frozenset({"l_ib"})

    def __call__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        region: torch.Tensor | None,
        l_ib: torch.Tensor | None,
    ) -> torch.Tensor:
        """``l_ib`` (B,h,w) itself."""
        assert l_ib is not None
        return l_ib


@dataclass(frozen=True)
class ShuffledMap(BottleneckMap):
    """L^ib of another image; see :func:`other_pairs`."""

    requires: ClassVar[frozenset[str]] = frozenset({"shuffled"})


@dataclass(frozen=True)
class UniformMap:
    """A map without content."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        region: torch.Tensor | None,
        l_ib: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B,h,w) ones. With ``cross_entropy: binary``, which scales a map by its range, this is a map of zeros."""
        return torch.ones_like(features[:, 0])


@dataclass(frozen=True)
class BoxesMap:
    """The object's boxes."""

    requires: ClassVar[frozenset[str]] = frozenset({"region"})

    def __call__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        region: torch.Tensor | None,
        l_ib: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B,h,w) in [0,1]: the share of each cell that the boxes cover."""
        assert region is not None
        return nn.functional.adaptive_avg_pool2d(region.to(features.dtype), (features.shape[2], features.shape[3]))


def teacher_map(
    name: str,
    teacher: Teacher,
    features: torch.Tensor,
    targets: torch.Tensor,
    region: torch.Tensor | None,
    l_ib: torch.Tensor | None,
) -> torch.Tensor:
    """The checked maps (B,h,w) of the teacher ``name``, detached; see :class:`ibsgl.guidance.registry.Teacher`.

    Raises:
        ValueError: they have another shape than the feature map, or a value that is negative or not finite.
    """
    maps = teacher(features, targets, region, l_ib).detach()
    expected = (len(features), *features.shape[2:])
    if maps.shape != expected:
        raise ValueError(f"guidance.teacher: {name} gives maps of the shape {tuple(maps.shape)}, not {expected}")
    if not bool((maps.isfinite() & (maps >= 0)).all()):
        raise ValueError(f"guidance.teacher: {name} gives a value that is negative or not finite")
    return maps


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
