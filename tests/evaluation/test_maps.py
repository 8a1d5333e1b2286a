"""Maps do not depend on batches or shards, and are read as they were written."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_methods import METHODS as EVERY_METHOD
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from baselines.gradcam import GradCAM
from ibsgl import attribution, cli
from ibsgl.attribution.registry import stored_form
from ibsgl.attribution.storage import Maps, _differences, _read, _undo, write_maps
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.index import shard
from ibsgl.data.loading import ImageDataset
from ibsgl.maps import batch_to_compile, compute_maps
from ibsgl.networks import build_network, upsample
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
    facts = SimpleNamespace(size=32, differences=[])
    with pytest.raises(ValueError, match=r"^a/0\.parquet has 0 maps for 2 pairs; delete it and run again$"):
        list(_read(file, Path("a/0.parquet"), facts, ["rise"], 1, CPU))


def written(data, network, pairs, methods, path, batch_size):
    """Maps in the form in which they are stored, in a file that is opened again."""
    options = {"seed": 1, "batch_size": batch_size, "device": CPU}
    options["statistics"] = FeatureStatistics().update(network.stem(data.images(data.ids("train"))).detach())
    batches = compute_maps(network, data, pairs, methods, coarse=True, **options)
    write_maps(path, batches, methods, data.size, {})
    finished = [maps for _, maps in compute_maps(network, data, pairs, methods, **options)]
    return Maps([path], pairs), {name: torch.cat([maps[name] for maps in finished]) for name in methods}


@pytest.mark.parametrize("size", [32, 45])
@pytest.mark.parametrize("name", EVERY_METHOD)
def test_stored_maps_are_those_of_the_method_to_the_bit(data, network, tmp_path, name, size):
    """Of images with one and with two classes, at an odd size too, in batches of any size."""
    data = ImageDataset(data.index, data.root, size)
    single = data.pairs("test").iloc[:4]
    pairs = pd.concat([single, single.iloc[:2].assign(target=5)]).sort_values(["image_id", "target"], ignore_index=True)
    methods = {name: attribution.row(name, EVERY_METHOD[name])}
    stored, finished = written(data, network, pairs, methods, tmp_path / "0.parquet", 4)
    for batch_size in (1, 4, 100):
        read = torch.cat([batch[name] for batch in stored.batches(batch_size)])
        assert read.shape == (6, size, size)
        assert torch.equal(read, finished[name])


def test_small_maps_are_stored_small(data, network, tmp_path):
    """In bytes before and after compression, counted by hand: nine maps of 2×2 numbers, and nine of 32×32."""
    pairs = data.pairs("test")
    methods = {name: attribution.get(name) for name in ("gradcam", "random")}
    written(data, network, pairs, methods, tmp_path / "0.parquet", 4)
    row_groups = pq.ParquetFile(tmp_path / "0.parquet").metadata
    groups = [row_groups.row_group(number) for number in range(row_groups.num_row_groups)]
    # The columns after image_id and target.
    small, large = ([group.column(column) for group in groups] for column in (2, 3))
    # A few dozen bytes per row group and column are Parquet's own.
    own = 120 * len(groups)
    assert 0 <= sum(column.total_uncompressed_size for column in small) - 9 * 2 * 2 * 4 <= own
    assert 0 <= sum(column.total_uncompressed_size for column in large) - 9 * 32 * 32 * 4 <= own
    # Noise in [0,1) has few exponents, so three of its four bytes do not shrink. As differences none would.
    assert 0.7 < sum(column.total_compressed_size for column in large) / (9 * 32 * 32 * 4) < 0.9


def test_a_smooth_map_takes_a_part_of_its_bytes(tmp_path, stored):
    maps = upsample(torch.rand(8, 3, 3, generator=generator(0, "smooth")), (32, 32))
    pairs = pd.DataFrame({"image_id": [str(number) for number in range(8)], "target": 0})
    stored(pairs, {"a": maps}, batch_size=8)
    column = pq.ParquetFile(tmp_path / "0.parquet").metadata.row_group(0).column(2)
    assert column.total_compressed_size < 0.5 * 8 * 32 * 32 * 4


def test_differences_are_those_of_a_slow_loop_and_can_be_undone():
    bits = np.random.default_rng(0).integers(0, 2**32, (2, 3, 5), dtype=np.uint32)
    # The smallest and largest numbers, and a not-a-number.
    bits[0, 0] = [0, 1, 2**31, 2**32 - 1, 0x7FC00001]
    # (1, −2, 1) along both axes, with zeros beyond the border.
    weights = {(dy, dx): (1, -2, 1)[dy] * (1, -2, 1)[dx] for dy in range(3) for dx in range(3)}
    expected = np.zeros_like(bits)
    for number, y, x in np.ndindex(bits.shape):
        inside = ((dy, dx) for dy, dx in weights if dy <= y and dx <= x)
        difference = sum(weights[dy, dx] * int(bits[number, y - dy, x - dx]) for dy, dx in inside) % 2**32
        # 0, −1, 1, −2, … become 0, 1, 2, 3, …
        expected[number, y, x] = 2 * difference if difference < 2**31 else 2 * (2**32 - difference) - 1
    found = _differences(bits.view(np.float32))
    assert (found == expected).all()
    assert (_undo(found).view(np.uint32) == bits).all()


def test_maps_of_no_pairs_are_written_and_read(stored):
    empty = stored(
        pd.DataFrame({"image_id": pd.Series(dtype=str), "target": pd.Series(dtype=int)}), {"a": torch.zeros(0, 32, 32)}
    )
    assert list(empty.batches(4)) == []
    assert empty.labels == {"a": "A"}


def test_a_file_of_plain_float32_maps_is_refused(data, stored, tmp_path):
    """Files had this form once."""
    pairs = data.pairs("test")
    stored(pairs, {"a": torch.rand(len(pairs), 32, 32)})
    path = tmp_path / "0.parquet"
    table = pq.read_table(path)
    kind = table.schema.field("a").with_type(pa.list_(pa.float32(), 32 * 32))
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(pairs) * 32 * 32, np.float32)), 32 * 32)
    pq.write_table(table.set_column(2, kind, values).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ValueError, match=r"0\.parquet has no saliency maps of this benchmark; delete it and run again"):
        Maps([path], pairs)


def test_only_jobs_of_many_forward_passes_are_compiled(data, network, monkeypatch):
    """The limit is in FLOPs of masked passes: one for each mask and image, whatever the number of classes."""
    pairs = data.pairs("test")
    counted = FlopCounterMode(display=False)
    with torch.no_grad(), counted:
        network(torch.zeros(1, 3, data.size, data.size))
    passes = 100 * pairs["image_id"].nunique()
    rise = attribution.get("rise", masks=100)
    for limit, expected in ((passes * counted.get_total_flops(), 64), (passes * counted.get_total_flops() + 1, 0)):
        monkeypatch.setattr("ibsgl.maps.COMPILE_FROM", limit)
        assert batch_to_compile(network, rise, data.size, pairs) == expected
    monkeypatch.setattr("ibsgl.maps.COMPILE_FROM", 1)
    # A batch is no larger than all masks of an image. Gradients are not compiled.
    assert batch_to_compile(network, attribution.get("rise", masks=9), data.size, pairs) == 9
    # Of the 64 channels some may be constant. Then a pass may never have as many images as this chunk.
    for chunk, expected in ((32, 32), (33, 0)):
        assert batch_to_compile(network, attribution.get("score_cam", chunk=chunk), data.size, pairs) == expected
    for method, expected in (
        (attribution.get("sise", chunk=32), 32),
        (attribution.get("integrated_gradients"), 0),
        (attribution.get("gradcam"), 0),
    ):
        assert batch_to_compile(network, method, data.size, pairs) == expected
    assert not batch_to_compile(network, rise, data.size, pairs[:0])


@pytest.mark.parametrize(("limit", "compiled"), [(1, True), (1e30, False)])
def test_the_file_says_how_its_passes_ran(limit, compiled, data, network, monkeypatch, tmp_path):
    monkeypatch.setattr("ibsgl.maps.COMPILE_FROM", limit)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    data.index.save(tmp_path / "index.parquet")
    torch.save(network.state_dict(), tmp_path / "network.pt")
    settings = {
        "seed": 0,
        "network": {"arch": "resnet_small", "options": {"width": 8}, "image_size": 32},
        "methods": {"rise": {"masks": 4, "cells": 3, "chunk": 2}},
        "shards": 1,
        "precision": "bfloat16",
        "compile": "auto",
    }
    arguments = [f"--index={tmp_path / 'index.parquet'}", f"--root={data.root}", f"--weights={tmp_path / 'network.pt'}"]
    arguments += [f"--settings={json.dumps(settings)}", f"--out={tmp_path / '0.parquet'}"]
    done = CliRunner().invoke(cli.app, ["maps", *arguments])
    assert done.exit_code == 0, done.output
    written = Maps([tmp_path / "0.parquet"], data.pairs("test")).settings["rise"]
    assert written["passes"] == {"precision": "bfloat16", "folded": True, "compiled": compiled}


def test_a_subclass_with_other_maps_does_not_store_those_of_its_base():
    class Squared(GradCAM):
        def __call__(self, *arguments, **context):
            return super().__call__(*arguments, **context).square()

    class Renamed(GradCAM):
        label = "another name"

    squared, renamed = Squared(), Renamed()
    assert stored_form(squared) is squared
    assert stored_form(renamed) == renamed.coarse
