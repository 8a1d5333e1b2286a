"""Seeds by name: every random draw of the benchmark comes from a generator of this module.

The config has one root seed. All other seeds are derived from it by hashing a name. So two draws never share a stream by
accident, and no draw depends on the batch size, the shards or the order of the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from the root ``seed`` and names. It is the same on all machines and Python versions."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` seeded with :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))


def draw(sample: Callable[[torch.Generator], torch.Tensor], batch: int, generators: Generators) -> torch.Tensor:
    """Random tensors for a batch of images: ``(batch, …)``.

    With one generator per image, every image has its own draw. With a single generator (``None``: one with the seed 0), the
    whole batch shares one draw. In both cases, an image's draw does not depend on the other images.
    """
    if generators is None or isinstance(generators, torch.Generator):
        shared = sample(listed(generators, batch)[0])
        return shared.expand(batch, *shared.shape)
    return torch.stack([sample(g) for g in listed(generators, batch)])


def listed(generators: Generators, batch: int) -> Sequence[torch.Generator]:
    """One generator per image, or the single one of the whole batch (``None``: one with the seed 0).

    Raises:
        ValueError: there are several, and not one per image.
    """
    if generators is None:
        return [torch.Generator().manual_seed(0)]
    if isinstance(generators, torch.Generator):
        return [generators]
    if len(generators) != batch:
        raise ValueError(
            f"{len(generators)} generators for a batch of {batch} images: give one per image, or a single one"
        )
    return generators
