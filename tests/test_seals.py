"""Seals: what has changed, what does not belong together, and what a later step has written is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ibsgl import seals


@pytest.fixture(autouse=True)
def step():
    seals.begin()
    yield
    seals.begin()


def write(path, text="content", **made_from):
    """A sealed file of a step that has read the files ``made_from``."""
    seals.begin()
    for kind, files in made_from.items():
        for file in files:
            seals.check(file, kind)
    with seals.sealed(path) as temporary:
        temporary.write_text(text)
    seals.begin()
    return path


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_flipped_bit_is_found_whatever_the_date(tmp_path, bit, place):
    file = write(tmp_path / "a" / "maps.parquet")
    seals.check(file, "maps")
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    message = r"a/maps\.parquet has changed since it was written; delete it and run again"
    with pytest.raises(ValueError, match=message):
        seals.check(file, "maps")
    with pytest.raises(
        ValueError, match=r"a/maps\.parquet has changed since it was written; delete the folder .*/a and run"
    ):
        seals.check(file.parent, "evaluation")
    assert not seals.intact(file)


def test_a_truncated_file_is_found_and_a_file_without_a_seal_is_taken(tmp_path):
    file = write(tmp_path / "scores.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"scores\.parquet has changed"):
        seals.check(tmp_path, "evaluation")
    seals.remove(file)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own.pt").write_text("own")
    seals.check(tmp_path / "own.pt", "weights")
    seals.check(tmp_path / "missing.pt", "weights")
    assert seals.intact(tmp_path / "own.pt")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": "a", "started": 1, "made_from": 5}', "\u0000"])
def test_a_broken_seal_is_one_line(tmp_path, text):
    file = write(tmp_path / "a.csv")
    seals.seal_of(file).write_text(text)
    with pytest.raises(ValueError, match=r"\.a\.csv\.seal is not a seal of this benchmark; delete a\.csv"):
        seals.check(file, "table")


def test_a_step_does_not_replace_what_a_later_step_has_written(tmp_path):
    file = tmp_path / "network.pt"
    orphan = seals._Step()
    write(file, "of the later step")
    seals._step = orphan
    with pytest.raises(ValueError, match=r"network\.pt was written by a step that began later than this one"):
        seals.save_tensors(file, {"a": torch.zeros(1)})
    assert file.read_text() == "of the later step"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".network.pt.seal", "network.pt"]
    # The other way round it is replaced, also by the same step twice.
    seals.begin()
    for text in ("once", "twice"):
        with seals.sealed(file) as temporary:
            temporary.write_text(text)
    assert file.read_text() == "twice"


def test_files_of_two_runs_do_not_belong_together(tmp_path):
    index, other_index = (write(tmp_path / f"{name}.parquet", name) for name in ("index", "other"))
    pretrained = write(tmp_path / "pretrained.pt", "p", index=[index])
    guided = write(tmp_path / "guided.pt", "g", index=[index], weights=[pretrained])
    maps = write(tmp_path / "maps.parquet", "m", index=[index], weights=[guided])
    statistics = write(tmp_path / "statistics.pt", "s", index=[index], weights=[pretrained])

    def together(**files):
        seals.begin()
        for kind, of_kind in files.items():
            for file in of_kind:
                seals.check(file, kind)
        seals.check_together()

    together(index=[index], weights=[pretrained, guided], maps=[maps], statistics=[statistics])
    # Statistics of the network that the guided one started from.
    together(index=[index], weights=[guided], statistics=[statistics])
    with pytest.raises(ValueError, match=r"other\.parquet and .*pretrained\.pt are of different data"):
        together(index=[other_index], weights=[pretrained])
    with pytest.raises(ValueError, match=r"maps\.parquet was made from other weights than .*pretrained\.pt"):
        together(index=[index], weights=[pretrained], maps=[maps])
    # A network that was trained from another one than the given.
    another = write(tmp_path / "another.pt", "a", index=[index])
    with pytest.raises(ValueError, match=r"guided\.pt was made from other weights than"):
        together(index=[index], weights=[another, guided])
    # A table inherits the index of the scores that it is made from.
    scores = write(tmp_path / "scores.parquet", "s", index=[index])
    table = write(tmp_path / "table.csv", "t", evaluation=[scores])
    with pytest.raises(ValueError, match="are of different data"):
        together(index=[other_index], table=[table])
    # A user's own copy has no seal, so nothing is known about it.
    copied = tmp_path / "copied.pt"
    copied.write_bytes(guided.read_bytes())
    together(index=[index], weights=[copied], statistics=[statistics])
    seals.begin()
    for file in (maps, other_index):
        seals.check(file, None)
    seals.check_together()


def test_a_seal_names_what_a_file_was_made_from(tmp_path):
    index = write(tmp_path / "index.parquet")
    table = write(tmp_path / "table.csv", index=[index])
    found = json.loads(seals.seal_of(table).read_text())
    assert found["made_from"] == {"index": [json.loads(seals.seal_of(index).read_text())["sha256"]]}


def test_a_checkpoint_survives_an_end_between_its_seal_and_itself(tmp_path, monkeypatch):
    file = tmp_path / "network.checkpoint"
    seals.save_tensors(file, {"epoch": 1})
    before = file.read_bytes()

    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "replace", lambda source, target: end() if target == file else os.rename(source, target))
        with pytest.raises(KeyboardInterrupt):
            seals.save_tensors(file, {"epoch": 2})
    assert file.read_bytes() == before
    assert seals.intact(file)
    seals.seal_of(file).write_text("")
    assert not seals.intact(file)


def test_a_folder_is_sealed_as_a_whole(tmp_path):
    folder = tmp_path / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    image = folder / "JPEGImages" / "a.jpg"
    image.write_text("a")
    seals.check_folder(folder)
    seals.seal_folder(folder)
    (folder / ".snakemake_timestamp").touch()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a").touch()
    seals.check_folder(folder)
    message = (
        r"VOC2007: a file in it has changed since the folder was made; delete the folder and run again \(if you have"
    )
    for change in (lambda: image.write_text("b"), image.unlink, (folder / "b").touch):
        image.write_text("a")
        seals.check_folder(folder)
        change()
        with pytest.raises(ValueError, match=message):
            seals.check_folder(folder)
    seals.seal_of(folder).unlink()
    seals.check_folder(folder)


def test_what_the_system_says_while_tensors_are_written_is_not_hidden(tmp_path):
    """With a limit of the kernel, as on a full disk; torch's own message names neither."""
    limited = """
import resource, signal, sys, torch
from ibsgl import seals
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    seals.save_tensors(sys.argv[1], {"a": torch.zeros(100_000)})
except OSError as error:
    print(error.strerror, error.filename)
"""
    file = tmp_path / "network.pt"
    said = subprocess.run([sys.executable, "-c", limited, file], capture_output=True, text=True, check=True)
    assert said.stdout == f"File too large {file}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [".", "..", "/", "gone"])
def test_a_folder_without_a_name_or_that_is_not_there_has_no_seal(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seals.seal_of("gone").write_text(json.dumps({"sha256": "0", "started": 1, "made_from": {}}))
    seals.check_folder(Path(folder))
