"""Maps do not depend on batches or shards, and are read as they were written."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, _read, write_maps
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.index import shard
from ibsgl.maps import compute_maps
from ibsgl.networks import build_network
from ibsgl.randomness import generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=30, test=9)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("resnet_small", 6, width=8).eval()


METHODS = {
    "gradient": {},
    "rise": {"masks": 12, "cells": 3},
    "bottleneck": {"steps": 2, "samples": 2},
    "random": {},
    "oracle": {},
}


def maps(data, network, name, pairs, batch_size):
    statistics = FeatureStatistics().update(network.stem(data.images(data.ids("train"))).detach())
    batches = compute_maps(
        network,
        data,
        pairs,
        {name: attribution.get(name, **METHODS[name])},
        seed=1,
        batch_size=batch_size,
        device=CPU,
        statistics=statistics,
    )
    return torch.cat([of_batch[name] for _, of_batch in batches])


@pytest.fixture
def stored(tmp_path):
    """Writes maps, {method: (N,32,32)}, to a file and opens it again."""

    def write(pairs, maps, batch_size=4):
        def batches():
            for start in range(0, len(pairs), batch_size):
                part = slice(start, start + batch_size)
                yield pairs.iloc[part], {name: saliency[part] for name, saliency in maps.items()}

        methods = {name: SimpleNamespace(label=name.upper()) for name in maps}
        write_maps(tmp_path / "0.parquet", batches(), methods, 32, {"seed": 3})
        return Maps([tmp_path / "0.parquet"], pairs)

    return write


@pytest.mark.parametrize("name", METHODS)
def test_neither_batches_nor_shards_show(data, network, name):
    pairs = data.pairs("test")
    whole = maps(data, network, name, pairs, 9)
    torch.testing.assert_close(maps(data, network, name, pairs, 2), whole, rtol=1e-4, atol=1e-5)
    for number in range(3):
        part = shard(pairs, number, 3)
        torch.testing.assert_close(maps(data, network, name, part, 4), whole[part.index.tolist()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("number", "shards"), [(7, 2), (2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(number, shards):
    with pytest.raises(ValueError, match=f"there is no shard {number} of {shards}"):
        shard(pd.DataFrame({"image_id": ["a", "b"]}), number, shards)


def test_shards_are_a_partition_that_keeps_images_whole():
    pairs = pd.DataFrame({"image_id": ["a", "a", "b", "c", "c", "c", "d"], "target": [0, 1, 0, 0, 1, 2, 1]})
    parts = [shard(pairs, number, 3) for number in range(3)]
    assert [list(part["image_id"]) for part in parts] == [["a", "a", "d"], ["b"], ["c", "c", "c"]]


def test_a_method_that_gives_nan_is_named(data, network):
    class Broken:
        requires = frozenset()

        def __call__(self, network, images, targets, generator=None):
            return torch.full((len(images), 32, 32), torch.nan)

    with pytest.raises(FloatingPointError, match=r"broken: the map of image shapes_test_00000, class cross"):
        next(compute_maps(network, data, data.pairs("test"), {"broken": Broken()}, seed=0, batch_size=4, device=CPU))


def test_maps_are_read_as_they_were_written_whatever_the_batches(data, stored):
    pairs = data.pairs("test")
    maps = {name: torch.rand(len(pairs), 32, 32, generator=generator(0, name)) for name in ("a", "b")}
    read = stored(pairs, maps)
    assert read.labels == {"a": "A", "b": "B"}
    assert read.settings == {"a": {"seed": 3}, "b": {"seed": 3}}
    for batch_size in (1, 4, 100):
        batches = list(read.batches(batch_size))
        for name, saliency in maps.items():
            assert torch.equal(torch.cat([batch[name] for batch in batches]), saliency)


def test_maps_of_other_pairs_or_methods_are_refused(data, stored, tmp_path):
    pairs = data.pairs("test")
    stored(pairs, {"a": torch.rand(len(pairs), 32, 32)})
    with pytest.raises(ValueError, match=r"0\.parquet: the maps do not belong to this index"):
        Maps([tmp_path / "0.parquet"], pairs.iloc[1:])
    with pytest.raises(ValueError, match="there are no maps of rise"):
        Maps([tmp_path / "0.parquet"], pairs, ["rise"])


def test_a_batch_that_does_not_fit_into_memory_is_halved(data, network):
    asked = []

    class Hungry:
        label, requires = "hungry", frozenset()

        def __call__(self, network, images, targets, generator=None):
            asked.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return images.mean(1)

    pairs = data.pairs("test")
    batches = compute_maps(network, data, pairs, {"hungry": Hungry()}, seed=0, batch_size=9, device=CPU)
    ((_, maps),) = batches
    assert asked == [9, 4, 2, 2, 2, 2, 1]
    torch.testing.assert_close(maps["hungry"], data.images(list(pairs["image_id"])).mean(1))


@pytest.mark.parametrize("name", ["rise", "bottleneck"])
def test_memory_that_runs_out_late_changes_no_draw(data, network, name, monkeypatch):
    """The first attempt fails after the images' generators have been drawn from."""
    pairs, whole = data.pairs("test"), maps(data, network, name, data.pairs("test"), 9)
    method = type(attribution.get(name))
    call, failed = method.__call__, []

    def fail_once(self, *arguments, **context):
        found = call(self, *arguments, **context)
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(method, "__call__", fail_once)
    torch.testing.assert_close(maps(data, network, name, pairs, 9), whole, rtol=1e-4, atol=1e-5)
    assert failed


def test_a_file_that_has_fewer_maps_than_rows_is_named():
    """Arrow reads nothing from some damaged files, and says nothing."""
    file = SimpleNamespace(iter_batches=lambda *_, **__: iter(()), metadata=SimpleNamespace(num_rows=2))
    with pytest.raises(ValueError, match=r"^a/0\.parquet has 0 maps for 2 pairs; delete it and run again$"):
        list(_read(file, Path("a/0.parquet"), ["rise"], 1))
