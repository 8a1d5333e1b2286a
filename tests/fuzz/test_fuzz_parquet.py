"""Parquet files that are damaged, or from another program."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import damaged, only_our_errors
from hypothesis import given
from hypothesis import strategies as st

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data.index import Index, as_table
from ibsgl.reporting.figures.deletion import read_curves
from ibsgl.reporting.measurements import read_measurements
from tests.reporting.score_rows import METADATA, run, write

SIZE = 4
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
COLUMNS = st.sampled_from(
    [
        pa.array([1, 2]),
        pa.array(["a", "b"]),
        pa.array([None, None]),
        pa.array([1.5, float("nan")]),
        pa.array([[1], [2, 3]]),
        pa.array([{"x": 1}, {"x": 2}]),
        pa.array([b"\xff", b""]),
        pa.array([True, False]),
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array(["a", "a"]).dictionary_encode(),
        pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2 * SIZE**2, pa.float32()), SIZE**2),
        pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 6, pa.float32()), 3),
    ]
)


@st.composite
def foreign(draw, table, keys):
    """``table`` with columns and metadata of another program."""
    names = table.column_names
    table = table.slice(0, 2)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(names))
        match draw(st.sampled_from(["replace", "drop", "rename", "add"])):
            case "replace" if name in table.column_names and table.num_rows == 2:
                table = table.set_column(table.column_names.index(name), name, draw(COLUMNS))
            case "drop" if name in table.column_names:
                table = table.select([i for i, other in enumerate(table.column_names) if other != name])
            case "rename" if name in table.column_names:
                table = table.rename_columns([each.upper() if each == name else each for each in table.column_names])
            case "add" if table.num_rows == 2:
                table = table.append_column(draw(st.sampled_from(["more", name])), draw(COLUMNS))
    facts = (table.schema.metadata or {}).get(b"ibsgl")
    match draw(st.sampled_from(["keep", "none", "bytes", "json", "part"])):
        case "none":
            facts = None
        case "bytes":
            facts = draw(st.binary(max_size=10))
        case "json":
            facts = json.dumps(draw(JSON)).encode()
        case "part" if facts:
            content = json.loads(facts)
            content[draw(st.sampled_from(keys))] = draw(JSON)
            facts = json.dumps(content).encode()
    return table.replace_schema_metadata(None if facts is None else {b"ibsgl": facts})


def store(content, file):
    """Write a table or bytes."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        pq.write_table(content, file)


def index_rows():
    facts = {"width": 8, "height": 8, "file": "a.png", "difficult": [], "boxes": [[0, 0, 4, 4]]}
    return [{"image_id": name, "class_name": "cat", "target": 0, **facts} for name in "ab"]


class Files(dict):
    """What a test damages, by name: (path, content, table)."""

    def __repr__(self):
        return ", ".join(self)


def read_all(**paths):
    return Files({name: (path, path.read_bytes(), pq.read_table(path)) for name, path in paths.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parquet")


@pytest.fixture(scope="module")
def index(folder):
    path = folder / "index.parquet"
    Index(("cat", "dog"), "0" * 64, as_table({"test": index_rows()})).save(path)
    return read_all(index=path)


@given(data=st.data())
def test_indexes(index, data):
    path, content, table = index["index"]
    store(data.draw(st.one_of(damaged(content), foreign(table, ["class_names", "digest"]))), path)
    found = only_our_errors(lambda: Index.load(path), path)
    if found is not None:
        assert set(found.table) == set(table.column_names)
        assert all(isinstance(name, str) for name in found.class_names)


@pytest.fixture(scope="module")
def maps(folder):
    path, pairs = folder / "0.parquet", pd.DataFrame(index_rows())
    batches = [(pairs, {"rise": torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))})]
    write_maps(path, iter(batches), {"rise": attribution.get("rise")}, SIZE, {"seed": 0})
    return read_all(maps=path), pairs


@given(data=st.data())
def test_maps(maps, data):
    files, pairs = maps
    path, content, table = files["maps"]
    store(
        data.draw(st.one_of(damaged(content), foreign(table, ["labels", "size", "sides", "differences", "settings"]))),
        path,
    )

    def read():
        return [each["rise"].shape for each in Maps([path], pairs, ["rise"]).batches(1)]

    shapes = only_our_errors(read, path, name=str(path.parent))
    assert shapes in (None, [(1, SIZE, SIZE)] * 2), shapes


NAMES = ("scores", "losses", "predictions", "curves", "diagnostics")


@pytest.fixture(scope="module")
def measured(folder):
    (place,) = write(run({}, replicates=1, images=2, variants=["control", "guided"]), folder)
    return place, read_all(**{name: place / f"{name}.parquet" for name in NAMES})


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_measurements(measured, data, name):
    place, files = measured
    path, before, table = files[name]
    keys = [*METADATA, "replicate", "settings", "seconds"]
    store(data.draw(st.one_of(damaged(before), foreign(table, keys))), path)
    try:
        only_our_errors(lambda: read_measurements([place]), path, name=str(place))
        only_our_errors(lambda: read_curves([place]), path, name=str(place))
    finally:
        path.write_bytes(before)


def test_the_undamaged_files_are_read(index, maps, measured):
    for path, content, _ in {**index, **maps[0], **measured[1]}.values():
        path.write_bytes(content)
    assert len(Index.load(index["index"][0]).table) == 2
    read = next(Maps([maps[0]["maps"][0]], maps[1], ["rise"]).batches(2))["rise"]
    assert read.isfinite().all()
    assert read_measurements([measured[0]]).model == "resnet"
