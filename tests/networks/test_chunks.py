"""Running in pieces: everything once, in order, in smaller pieces where memory does not suffice."""

import pytest
import torch

from ibsgl.networks.chunks import chunked


def test_chunks_cover_everything_once_in_order():
    seen = list(chunked(lambda start, stop: (start, stop), 7, 3, torch.device("cpu")))
    assert seen == [(0, 3), (3, 6), (6, 7)]
    assert list(chunked(lambda start, stop: (start, stop), 0, 3, torch.device("cpu"))) == []


def test_chunks_that_do_not_fit_are_run_again_in_halves():
    asked = []

    def run(start, stop):
        asked.append((start, stop))
        if stop - start > 2:
            raise torch.OutOfMemoryError
        return stop

    assert list(chunked(run, 9, 8, torch.device("cpu"))) == [2, 4, 6, 8, 9]
    assert asked[:3] == [(0, 8), (0, 4), (0, 2)]
    with pytest.raises(torch.OutOfMemoryError):
        list(chunked(lambda start, stop: run(0, 3), 1, 1, torch.device("cpu")))


def test_chunks_that_did_not_fit_once_stay_small(monkeypatch):
    """On a card that says it has room for more, and has not."""
    sizes = []

    def run(start, stop):
        sizes.append(stop - start)
        if stop - start > 6:
            raise torch.OutOfMemoryError

        return stop - start

    for name, value in (("_memory", 0), ("_empty_cache", None)):
        monkeypatch.setattr(f"ibsgl.networks.chunks.{name}", lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    for name in ("max_memory_allocated", "memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    assert sum(list(chunked(run, 30, 2, torch.device("cuda")))) == 30
    assert sizes == [2, 4, 8, 4, 4, 4, 4, 4, 4][: len(sizes)]
    assert sizes.count(8) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_chunks_grow_on_cuda_while_memory_lasts():
    def run(start, stop):
        torch.empty((stop - start) << 20, device="cuda")
        return stop - start

    sizes = list(chunked(run, 100, 4, torch.device("cuda")))
    assert sizes[:4] == [4, 8, 16, 32]
    assert sum(sizes) == 100
