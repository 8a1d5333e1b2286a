"""Seeds by name: every random draw of the benchmark comes from a generator made here.

One number in the config is the root; every other seed is derived from it by hashing a name, so that no two draws share a
stream by accident and none depends on batch size, sharding or the order of the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from the root ``seed`` and a path of names, stable across machines and Python versions."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` seeded with :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))


def draw(sample: Callable[[torch.Generator], torch.Tensor], batch: int, generators: Generators) -> torch.Tensor:
    """Draw once per image and stack to ``(batch, …)``.

    A sequence of generators, one an image, gives every image a draw of its own. A single generator (``None``: one seeded
    with 0) is drawn from once and the result shared by the whole batch. Either way an image gets the same draw alone and
    in a batch.
    """
    if generators is None or isinstance(generators, torch.Generator):
        shared = sample(generators if generators is not None else torch.Generator().manual_seed(0))
        return shared.expand(batch, *shared.shape)
    if len(generators) != batch:
        raise ValueError(
            f"{len(generators)} generators for a batch of {batch} images: give one an image, or a single one"
        )
    return torch.stack([sample(g) for g in generators])
