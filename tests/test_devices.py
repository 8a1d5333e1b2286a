"""Steps share out the cards of a machine: real processes and locks, and a torch that says it sees cards."""

import os
import signal
import sys
import tempfile
import time
from itertools import pairwise
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch

from ibsgl import devices

CARDS = ("GPU-aaaa", "GPU-bbbb")
# The parent has torch already, and touches no card.
FORK = get_context("fork")


def _pretend(folder, visible):
    """Locks in ``folder``; torch sees the cards that ``CUDA_VISIBLE_DEVICES=visible`` would leave of two."""
    tempfile.tempdir = str(folder)
    seen = [CARDS[int(number)] for number in visible.split(",") if number]
    torch.cuda.device_count = lambda: len(seen)
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid=seen[index])
    torch.cuda.set_device = lambda index: None
    return seen


def _step(folder, visible, seconds, connection):
    said = os.open(folder / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    sys.stderr = sys.__stderr__
    seen = _pretend(folder, visible)
    device = devices.lease()
    assert devices.lease() is device
    began = time.monotonic()
    connection.send((device.type, device.index, seen[device.index]))
    time.sleep(seconds)
    connection.send((began, time.monotonic()))


class Step:
    """A process that takes a card for ``seconds``."""

    def __init__(self, folder, visible="0,1", seconds=60.0):
        self.folder = folder
        self.receiver, sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=_step, args=(folder, visible, seconds, sender), daemon=True)
        self.process.start()
        sender.close()

    def got(self, within=60.0):
        assert self.receiver.poll(within), self.said()
        return self.receiver.recv()

    def said(self):
        file = self.folder / f"{self.process.pid}.txt"
        return file.read_text() if file.exists() else ""

    def waits(self):
        deadline = time.monotonic() + 60
        while not self.said():
            assert time.monotonic() < deadline
            assert not self.receiver.poll(0.02)
        return self.said()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture
def step(tmp_path):
    """Start a step whose locks are in this test's folder."""
    started = []

    def start(**arguments):
        started.append(Step(tmp_path, **arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


def test_two_cards_are_never_taken_twice_at_once(step):
    steps = [step(seconds=0.2) for _ in range(7)]
    taken = {card: [] for card in CARDS}
    for one in steps:
        kind, _, card = one.got()
        assert kind == "cuda"
        taken[card].append(one.got())
    for times in taken.values():
        times.sort()
        assert len(times) >= 2
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    # Not one after the other either: some pair was at work together.
    assert any(a[0] < b[1] and b[0] < a[1] for a in taken[CARDS[0]] for b in taken[CARDS[1]])


def test_a_killed_step_gives_its_card_back(step):
    first = step(visible="0")
    assert first.got()[2] == CARDS[0]
    second = step(visible="0")
    assert second.waits() == "the GPU is taken by other steps; waiting for one\n"
    first.kill()
    assert second.got()[2] == CARDS[0]


def test_a_card_is_the_same_under_another_number(step):
    """As on SLURM, which shows a job its own card alone, as number 0."""
    assert step(visible="1").got() == ("cuda", 0, CARDS[1])
    assert step(visible="1,0").got() == ("cuda", 1, CARDS[0])
    third = step(visible="0,1")
    assert third.waits() == "all 2 GPUs are taken by other steps; waiting for one\n"
    assert step(visible="1").waits()


def test_different_cards_both_numbered_0_do_not_wait_for_each_other(step):
    assert step(visible="0").got() == ("cuda", 0, CARDS[0])
    assert step(visible="1").got() == ("cuda", 0, CARDS[1])


def test_the_lock_is_open_to_the_other_users_of_the_machine(step, tmp_path):
    step(visible="0").got()
    (lock,) = tmp_path.glob("ibsgl-gpu-*.lock")
    assert lock.stat().st_mode & 0o777 == 0o666


def test_without_a_card_the_error_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="torch finds none; give --gpu 0"):
        devices.lease()


def test_a_step_on_a_card_computes_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "identities", lambda: [CARDS[0]])
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    devices.lease.__wrapped__()
    assert not torch.backends.cudnn.allow_tf32


def test_what_auto_means_is_settled_once(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.automatic() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.automatic() == 1
    os.environ["IBSGL_GPU"] = "0"
    assert devices.automatic() == 0
