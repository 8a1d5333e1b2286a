"""Maps, scores and the effect of guidance do not depend on batches or shards, and scores are the metrics of the maps."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.index import shard
from ibsgl.evaluation.deletion import deletion_curves
from ibsgl.evaluation.effect import guidance_effect
from ibsgl.evaluation.scoring import score_maps
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.guidance.localization import saliency_cross_entropy
from ibsgl.maps import compute_maps
from ibsgl.metrics import MetricSettings
from ibsgl.networks import build_network
from ibsgl.randomness import generator
from ibsgl.saliency import gradient_saliency

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
        torch.testing.assert_close(
            maps(data, network, name, part, 4), whole[part.index.to_numpy()], rtol=1e-4, atol=1e-5
        )


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


def test_an_empty_shard_does_no_harm(data, network, stored):
    none = data.pairs("test").iloc[:0]
    read = stored(none, {"gradient": torch.zeros(0, 32, 32)})
    options = {"batch_size": 4, "device": CPU}
    assert score_maps(network, data, read, MetricSettings(), **options).empty
    settings = DeletionSettings(points=3, repeats=2)
    empty = deletion_curves(network, data, read, settings, r=0.35, seed=0, **options)
    assert empty.empty
    assert pd.concat([empty, empty])["probability"].dtype == float


def test_scores_by_hand(data, network, stored):
    """The whole image as map, and the box as map."""
    pairs = data.pairs("test")
    region = data.regions(pairs)
    ramp = torch.arange(32 * 32).float().view(1, 32, 32).expand(9, -1, -1)
    table = score_maps(
        network,
        data,
        stored(pairs, {"box": region.float(), "ramp": ramp}),
        MetricSettings(),
        batch_size=4,
        device=CPU,
    )
    assert table["method"].value_counts().to_dict() == {"box": 9, "ramp": 9}
    assert (table[table["method"] == "box"]["ebpg"] == 1).all()
    # The ramp's last 15 % of the pixels, in row-major order, are what is kept.
    images, targets = data.images(list(pairs["image_id"])), torch.tensor(pairs["target"].to_numpy())
    kept = images.reshape(9, 3, -1).clone()
    kept[:, :, : int(np.ceil(0.85 * 1023))] = 0
    with torch.no_grad():
        full = network(images).softmax(1)[range(9), targets]
        part = network(kept.view(9, 3, 32, 32)).softmax(1)[range(9), targets]
    rows = table[table["method"] == "ramp"]
    np.testing.assert_allclose(rows["p_full"], full, rtol=1e-4)
    np.testing.assert_allclose(rows["p_kept"], part, rtol=1e-4)
    np.testing.assert_allclose(rows["average_drop"], np.maximum(full - part, 0) / full, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(rows["average_increase"], part > full)


def test_guidance_effect_is_measured_on_the_held_out_images(data, network):
    pairs = data.pairs("held_out")
    l_ib = torch.rand(len(pairs), 2, 2, generator=torch.Generator().manual_seed(0))
    losses, predictions = guidance_effect(
        {"control": network, "guided": network}.items(),
        data,
        l_ib,
        r=0.35,
        cross_entropy="distribution",
        batch_size=4,
        device=CPU,
    )
    for frame in (losses, predictions):
        parts = [part.drop(columns="variant").reset_index(drop=True) for _, part in frame.groupby("variant")]
        assert parts[0].equals(parts[1])
    losses, predictions = (frame[frame["variant"] == "guided"] for frame in (losses, predictions))
    assert list(losses["image_id"]) == list(pairs["image_id"])
    images, targets = data.images(list(pairs["image_id"])), torch.tensor(pairs["target"].to_numpy())
    l_c = gradient_saliency(network.head, network.stem(images).detach(), targets)
    np.testing.assert_allclose(losses["l_ce"], saliency_cross_entropy(l_c, l_ib), rtol=1e-4)
    assert losses["l_ss"].between(0, 0.5).all()
    assert list(predictions["image_id"]) == data.ids("test")
    with torch.no_grad():
        hits = network(data.images(data.ids("test"))).argmax(1) == torch.tensor(data.pairs("test")["target"].to_numpy())
    assert list(predictions["correct"]) == hits.double().tolist()


def test_deletion_curves_start_at_the_whole_image(data, network, stored):
    pairs = data.pairs("test")
    saliency = stored(pairs, {"gradient": maps(data, network, "gradient", pairs, 9)})
    settings = DeletionSettings(points=3, repeats=2)
    curves = deletion_curves(network, data, saliency, settings, r=0.35, seed=0, batch_size=4, device=CPU)
    assert len(curves) == 9 * 2 * 3
    start = curves[curves["fraction"] == 0].groupby("image_id", sort=False)["probability"].first()
    with torch.no_grad():
        full = network(data.images(list(pairs["image_id"]))).softmax(1)[range(9), pairs["target"].to_numpy()]
    np.testing.assert_allclose(start, full, rtol=1e-4)
    again = deletion_curves(network, data, saliency, settings, r=0.35, seed=0, batch_size=9, device=CPU)
    np.testing.assert_allclose(curves["probability"], again["probability"], rtol=1e-4)
