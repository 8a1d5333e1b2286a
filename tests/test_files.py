"""Files are whole or not there, and equal content gives equal files."""

import json
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ibsgl.attribution.storage import Maps
from ibsgl.data.index import Index
from ibsgl.files import full_disk, of_the_future, write_json, written
from ibsgl.networks import build_network
from ibsgl.networks.weights import digest_state
from ibsgl.provenance import digest_file
from ibsgl.reporting.figures import read_curves
from ibsgl.reporting.measurements import read_measurements
from ibsgl.seals import save_tensors


def test_written_replaces_the_file_at_the_end_and_not_before(tmp_path):
    out = tmp_path / "new" / "out.npz"
    with written(out) as temporary:
        # NumPy appends the suffix that a name does not have.
        assert temporary.suffix == out.suffix
        np.savez(temporary, a=[1])
        assert not out.exists()
    assert np.load(out)["a"] == 1
    with written(out) as temporary:
        np.savez(temporary, a=[2])
        assert np.load(out)["a"] == 1
    assert np.load(out)["a"] == 2
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_what_is_written_has_the_usual_permissions(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with written(tmp_path / "out") as temporary:
            temporary.write_text("all")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_written_leaves_nothing_behind_when_the_block_fails(tmp_path, error):
    out = tmp_path / "out.csv"
    out.write_text("before")

    def fail():
        with written(out) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "before"


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"α": [1, 2.5]})
    assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == {"α": [1, 2.5]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.json"]


def test_equal_tensors_saved_twice_are_equal_files(tmp_path):
    state = build_network("vgg_small", 3, width=2).state_dict()
    for name in ("one.pt", "another.pt"):
        save_tensors(tmp_path / name, state)
    assert digest_file(tmp_path / "one.pt") == digest_file(tmp_path / "another.pt")
    loaded = torch.load(tmp_path / "one.pt", weights_only=True)
    assert digest_state(loaded) == digest_state(state)


def test_a_digest_of_weights_is_of_names_types_shapes_and_values():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    assert digest_state(state) == digest_state(dict(reversed(state.items())))
    strided = {"a": torch.arange(6.0).view(2, 3).t().contiguous().t(), "b": torch.tensor(1)}
    assert not strided["a"].is_contiguous()
    assert digest_state(state) == digest_state(strided)
    for other in (
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].view(3, 2), "b": state["b"]},
        {"a": state["a"].double(), "b": state["b"]},
        {"a": state["a"] + 1, "b": state["b"]},
        {"a": state["a"]},
    ):
        assert digest_state(state) != digest_state(other)


def foreign_files(folder):
    """Files that other programs have written: text, a Parquet file without our metadata, and one that is cut off."""
    pd.DataFrame({"a": [1, 2]}).to_parquet(folder / "other.parquet")
    whole = (folder / "other.parquet").read_bytes()
    return {"text": b"no Parquet", "empty": b"", "other": whole, "cut off": whole[:-3]}


@pytest.mark.parametrize("kind", ["text", "empty", "other", "cut off"])
def test_every_reader_names_a_file_that_is_not_ours(tmp_path, kind):
    content = foreign_files(tmp_path)[kind]
    file = tmp_path / "index.parquet"
    place = tmp_path / "resnet" / "0" / "evaluation" / "0"
    place.mkdir(parents=True)
    for path in (file, *(place / f"{name}.parquet" for name in ("scores", "curves"))):
        path.write_bytes(content)
    pairs = pd.DataFrame({"image_id": ["a"], "target": [0]})
    for read, path in (
        (lambda: Index.load(file), file),
        (lambda: Maps([file], pairs), file),
        (lambda: read_measurements([place]), place / "scores.parquet"),
        (lambda: read_curves([place]), place / "curves.parquet"),
    ):
        with pytest.raises(ValueError, match=str(path.parent)) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_file_of_the_future_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("b")
    assert of_the_future(tmp_path) is None
    os.utime(tmp_path / "a" / "b", (time.time() + 3600, time.time() + 3600))
    assert of_the_future(tmp_path) == tmp_path / "a" / "b"
    assert of_the_future(tmp_path / "missing") is None


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    assert full_disk(tmp_path) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    assert full_disk(tmp_path).startswith(f"The disk of {tmp_path} has 3 MB left.")
