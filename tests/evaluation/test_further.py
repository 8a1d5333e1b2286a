"""Further metrics of stored maps: what they are given, that no value depends on the batch, and what is refused."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import pytest
import torch

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data.index import shard
from ibsgl.data.loading import ImageDataset
from ibsgl.evaluation.further import measure_further
from ibsgl.maps import compute_maps
from ibsgl.metrics import further
from ibsgl.networks import build_network
from ibsgl.networks.split import evaluating

CPU = torch.device("cpu")
NAMES = {"gradcam_pp": {}, "rise": {"masks": 8, "cells": 3}, "random": {}, "oracle": {}}


@pytest.fixture(scope="module")
def data(small_shapes):
    """Six images, of which each shows its class and the one after it."""
    found = small_shapes(trainval=12, test=6)
    first = found.index.table
    second = first.assign(target=(first["target"] + 1) % 6)
    second["class_name"] = [found.index.class_names[target] for target in second["target"]]
    table = pd.concat([first, second]).sort_index(kind="stable").reset_index(drop=True)
    return ImageDataset(replace(found.index, table=table), found.root, found.size)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("resnet_small", 6, width=8).eval()


@pytest.fixture(scope="module")
def methods():
    return {name: attribution.get(name, **settings) for name, settings in NAMES.items()}


@pytest.fixture(scope="module")
def stored(data, network, methods, tmp_path_factory):
    """The maps of a shard of the test pairs, stored in batches of three."""
    folder = tmp_path_factory.mktemp("maps")

    def read(number=0, shards=1):
        pairs, file = shard(data.pairs("test"), number, shards), folder / f"{number}_{shards}.parquet"
        with evaluating(network):
            batches = compute_maps(network, data, pairs, methods, seed=1, batch_size=3, device=CPU)
            write_maps(file, batches, methods, data.size, {})
        return Maps([file], pairs)

    return read


def measured(metric, data, stored, network, methods, name="a metric", batch_size=4, **shards):
    given = {"maps": {}, "network": {"network": network}, "method": {"network": network, "methods": methods}}
    return measure_further(
        metric, name, data, stored(**shards), seed=1, batch_size=batch_size, device=CPU, **given[metric.requires]
    )


@dataclass
class Watched:
    """It keeps what it is given, and gives each pair its draw."""

    requires: str = "maps"
    label: ClassVar[str] = "Watched"
    higher_is_better: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0, 1)

    def __post_init__(self):
        self.seen = []

    def __call__(self, evidence):
        self.seen.append(evidence)
        return torch.stack([torch.rand((), generator=own) for own in evidence.generators])


def test_a_metric_of_maps_gets_no_image_and_one_of_the_network_no_method(data, stored, network, methods):
    given = {}
    for requires in ("maps", "network", "method"):
        metric = Watched(requires)
        measured(metric, data, stored, network, methods)
        given[requires] = metric.seen[0]
    assert (given["maps"].images, given["maps"].network, given["maps"].explain) == (None, None, None)
    assert given["network"].images.shape == (4, 3, 32, 32)
    assert given["network"].explain is None
    assert given["method"].explain is not None
    with pytest.raises(ValueError, match="declare requires = 'network'"):
        given["maps"].with_network()
    with pytest.raises(ValueError, match="declare requires = 'method'"):
        given["network"].with_method()


def test_each_pair_has_its_objects_its_region_and_its_target(data, stored, network, methods):
    metric = Watched()
    measured(metric, data, stored, network, methods, batch_size=5)
    rows = data.pairs("test")
    seen = metric.seen[:: len(NAMES)]
    assert torch.equal(torch.cat([one.region for one in seen]), data.regions(rows))
    assert torch.cat([one.targets for one in seen]).tolist() == rows["target"].tolist()
    objects = [of_pair for one in seen for of_pair in one.objects]
    assert [(of_pair.width, of_pair.height) for of_pair in objects] == list(
        zip(rows["width"], rows["height"], strict=True)
    )
    assert [[list(box) for box in of_pair.boxes] for of_pair in objects] == rows["boxes"].tolist()
    # Batches of five end between the two classes of an image.
    assert {of_pair.classes for of_pair in objects} == {2}
    assert not any(of_pair.difficult for of_pair in objects)


def test_draws_do_not_depend_on_batches_shards_or_methods(data, stored, network, methods):
    whole, _ = measured(Watched(), data, stored, network, methods, batch_size=5)
    pieces = [measured(Watched(), data, stored, network, methods, number=number, shards=2)[0] for number in (0, 1)]
    key = ["method", "image_id", "class_name"]
    one, two = (table.sort_values(key, ignore_index=True) for table in (whole, pd.concat(pieces)))
    pd.testing.assert_frame_equal(one, two)
    assert whole.groupby("image_id")["value"].nunique().eq(1).all()
    assert whole["value"].nunique() == 6
    other, _ = measured(Watched(), data, stored, network, methods, name="another metric")
    assert set(other["value"]).isdisjoint(whole["value"])


def test_a_method_that_is_called_again_makes_the_stored_maps(data, stored, network, methods):
    """Also one with random masks, and for some pairs of the batch alone."""
    metric = Watched("method")
    measured(metric, data, stored, network, methods, batch_size=12)
    assert len(metric.seen) == len(NAMES)
    for evidence in metric.seen:
        some_network, images, explain = evidence.with_method()
        assert torch.allclose(explain(some_network, images), evidence.saliency, atol=1e-5)
        places = torch.tensor([5, 5, 2])
        some = explain(some_network, images[places], pairs=places)
        assert torch.allclose(some, evidence.saliency[places], atol=1e-5)
    by_class = metric.seen[0]
    # The two pairs of the first image, each with the other's class.
    swapped = by_class.explain(network, by_class.images[:2], by_class.targets[[1, 0]], torch.tensor([0, 1]))
    assert torch.allclose(swapped, by_class.saliency[[1, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pointing_game", {}),
        ("deletion", {"steps": 4}),
        ("insertion", {"steps": 4}),
        ("sparseness", {}),
        ("complexity", {}),
        ("max_sensitivity", {"samples": 2}),
        ("model_randomisation", {"stages": 2}),
    ],
)
def test_a_metric_of_ours_does_not_depend_on_batches(data, stored, network, methods, name, settings):
    metric = further.get(name, **settings)
    one, reasons = measured(metric, data, stored, network, methods, name, batch_size=12)
    two, _ = measured(metric, data, stored, network, methods, name, batch_size=5)
    key = ["method", "image_id", "class_name"]
    one, two = (table.sort_values(key, ignore_index=True) for table in (one, two))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-5)
    assert len(one) == 12 * len(NAMES)
    assert reasons == {}
    assert one["value"].notna().any()


def test_a_method_that_is_left_out_is_not_called_and_has_no_values(data, stored, network, methods):
    metric = further.get("max_sensitivity", samples=1, max_passes=7)
    table, reasons = measured(metric, data, stored, network, methods)
    assert reasons == {"rise": "more than 7 passes per map (max_passes)"}
    assert table[table["method"] == "rise"]["value"].isna().all()
    assert table[table["method"] != "rise"]["value"].notna().all()


def test_an_empty_shard_has_no_rows(data, stored, network, methods):
    table, _ = measured(Watched(), data, stored, network, methods, number=6, shards=7)
    assert len(table) == 0
    assert set(table) == {"method", "image_id", "class_name", "target", "value"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([2.0] * 4), r"outside its range \[0, 1\]"),
        (torch.tensor([-0.1] * 4), r"outside its range"),
        (torch.tensor([torch.inf] * 4), "infinite"),
        (torch.tensor(0.5), r"shape \(\) for 4 pairs"),
    ],
)
def test_wrong_values_are_refused(data, stored, network, methods, value, message):
    class Wrong(Watched):
        def __call__(self, evidence):
            return value

    with pytest.raises(ValueError, match=message):
        measured(Wrong(), data, stored, network, methods)


def test_what_is_missing_is_named(data, stored, network, methods):
    options = {"seed": 1, "batch_size": 4, "device": CPU}
    with pytest.raises(ValueError, match="deletion requires the network; give --weights"):
        measure_further(further.get("deletion"), "deletion", data, stored(), **options)
    with pytest.raises(ValueError, match="there are maps of gradcam_pp, oracle, random, rise, and methods"):
        measure_further(Watched("method"), "a metric", data, stored(), network=network, **options)
