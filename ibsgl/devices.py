"""One step on a card at a time: neither Snakemake nor torch spreads the steps of one machine over its GPUs.

A step takes a lock per physical card. It is the kernel's (flock), so a step that is killed gives its card back as well.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import torch

# Seconds between two looks at cards that are all taken.
POLL = 0.5
# A lock object that is forgotten lets go.
_held: list[FileLock] = []


def identities() -> list[str]:
    """The name of every card that torch sees, in torch's order.

    It is the card's UUID (of its slice under MIG), which is the same whatever ``CUDA_VISIBLE_DEVICES`` shows and in
    whatever order.
    """
    import torch

    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def automatic() -> int:
    """1 where ``device: auto`` means a GPU, 0 for the CPU: ``IBSGL_GPU`` where it is set, else whether torch sees one.

    The answer is left in ``IBSGL_GPU`` for the processes to come: the jobs of a cluster keep to what was asked of its
    scheduler, whatever their node has.
    """
    if "IBSGL_GPU" not in os.environ:
        import torch

        os.environ["IBSGL_GPU"] = str(int(torch.cuda.is_available()))
    return int(os.environ["IBSGL_GPU"])


@cache
def lease() -> torch.device:
    """A card that no other step has, taken until this process ends; waits while all are taken.

    The card becomes torch's current one. Under SLURM the choice is among what the scheduler gave to the job. Further calls
    give the same card.

    Raises:
        ValueError: torch sees no GPU.
    """
    import torch

    names = identities()
    if not names:
        raise ValueError("a GPU was asked for and torch sees none; give --gpu 0")
    # Readable and writable by all: the users of a machine share its cards.
    folder = Path(tempfile.gettempdir())
    locks = [FileLock(folder / f"ibsgl-gpu-{name}.lock", mode=0o666, thread_local=False) for name in names]
    waiting = False
    while True:
        for index, lock in enumerate(locks):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _held.append(lock)
            torch.cuda.set_device(index)
            return torch.device("cuda", index)
        if not waiting:
            cards = "the GPU is" if len(names) == 1 else f"all {len(names)} GPUs are"
            print(f"{cards} taken by other steps; waiting for one", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(POLL)
