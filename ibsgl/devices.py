"""One step per GPU at a time. Neither Snakemake nor torch distributes the steps of one machine over its GPUs.

A step locks a physical card. The lock belongs to the operating system (flock), so it is released when the step is killed.
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

# Seconds between two attempts while all cards are taken.
POLL = 0.5
# Keep a reference: garbage collection releases the lock.
_held: list[FileLock] = []


def identities() -> list[str]:
    """The UUID of every card that is visible to torch, in torch's order. Under MIG it is the UUID of the slice.

    Unlike a card's number, the UUID does not depend on ``CUDA_VISIBLE_DEVICES``.
    """
    import torch

    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def available() -> bool:
    """Whether torch finds a CUDA GPU."""
    import torch

    return torch.cuda.is_available()


def automatic() -> int:
    """1 if ``device: auto`` means a GPU, 0 if it means the CPU.

    The environment variable ``IBSGL_GPU`` decides. If it is not set, it is set here: to 1 if torch finds a GPU. All later
    processes then use the same device. So the jobs on a cluster use what was requested from its scheduler, also on a node with
    other devices.
    """
    if "IBSGL_GPU" not in os.environ:
        os.environ["IBSGL_GPU"] = str(int(available()))
    return int(os.environ["IBSGL_GPU"])


def forbid_tf32() -> None:
    """Float32 means float32 on a GPU too.

    By default torch rounds the inputs of a GPU's convolutions to TF32, which has 10 bits after the point instead of 23.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False


@cache
def lease() -> torch.device:
    """A card that no other step uses. This process keeps it until it ends. If all cards are taken, this function waits.

    The card becomes torch's current device. Under SLURM it is one of the cards that the scheduler gave to the job. Further
    calls return the same card.

    Raises:
        ValueError: torch finds no GPU.
    """
    import torch

    names = identities()
    if not names:
        raise ValueError("a GPU is required, but torch finds none; give --gpu 0")
    # Readable and writable by everybody, because the users of a machine share its cards.
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
            forbid_tf32()
            return torch.device("cuda", index)
        if not waiting:
            cards = "the GPU is" if len(names) == 1 else f"all {len(names)} GPUs are"
            print(f"{cards} taken by other steps; waiting for one", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(POLL)
