"""Running over many images in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


# In images. 512 images of 224 pixels give VGG's first maps fewer than 2³¹ numbers, the most that some kernels can index.
LARGEST_CHUNK = 512


def chunked(run: Callable[[int, int], T], total: int, chunk: int, device: torch.device) -> Iterator[T]:
    """The results of ``run(start, stop)`` for consecutive pieces of 0 … ``total``, ``chunk`` at a time.

    If the device runs out of memory, the piece is halved and run again, and later pieces stay as small. On CUDA, pieces
    double in size, up to ``LARGEST_CHUNK``, while the free memory is more than twice what the last piece needed. ``run`` must
    change nothing before it is done. The size of the pieces may change its results only by rounding.
    """
    start, limit = 0, max(chunk, LARGEST_CHUNK)
    while start < total:
        stop, before = min(start + chunk, total), _memory(device)
        try:
            result = run(start, stop)
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            result = None
        # Not inside the handler: there the traceback still holds the failed piece's tensors.
        if result is None:
            chunk = limit = (stop - start) // 2
            _empty_cache(device)
            continue
        yield result
        if before is not None and stop - start == chunk:
            free, total_memory = torch.cuda.mem_get_info(device)
            taken = torch.cuda.max_memory_allocated(device) - before
            # Memory that torch has reserved and does not use is free too. A tenth of all memory is kept for fragmentation.
            spare = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - total_memory // 10
            chunk = min(2 * chunk, limit) if 2 * taken < spare else chunk
        start = stop


def in_pieces(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """``function(images)``, in smaller batches if the memory is too small for all images at once."""
    return torch.cat(list(chunked(lambda a, b: function(images[a:b]), len(images), max(1, len(images)), images.device)))


def _memory(device: torch.device) -> int | None:
    """Bytes of tensors on a CUDA device, after a reset of its peak counter; ``None`` on other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
