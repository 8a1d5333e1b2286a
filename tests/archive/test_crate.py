"""The archive as an RO-Crate: the same bytes each time, and metadata that describe each file."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from finished_run import finished_run

from ibsgl.archive import Member, crate, write_archive


def graph_of(archive):
    with zipfile.ZipFile(archive) as opened:
        return {entity["@id"]: entity for entity in json.loads(opened.read("ro-crate-metadata.json"))["@graph"]}


def test_the_same_results_give_the_same_bytes(run, pack, tmp_path, monkeypatch):
    first = pack("first.zip").read_bytes()
    assert pack("second.zip").read_bytes() == first
    # In another folder, with other dates, and written in another order.
    other = tmp_path / "elsewhere"
    finished_run(other)
    for path in sorted(other.rglob("*.csv"), reverse=True):
        os.utime(path, (1, 1))
        shutil.copy2(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
    monkeypatch.chdir(other)
    assert pack().read_bytes() == first


def test_every_file_has_its_digest_and_size(run, pack):
    archive = pack(maps=True, weights=True)
    graph = graph_of(archive)
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert names == ["ro-crate-metadata.json", *sorted(names[1:])]
        for name in names[1:]:
            content = opened.read(name)
            assert graph[name]["sha256"] == hashlib.sha256(content).hexdigest()
            assert graph[name]["contentSize"] == str(len(content))
            assert "/" in graph[name]["encodingFormat"]
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {part["@id"] for part in graph["./"]["hasPart"]} == set(names[1:])


def test_it_is_a_workflow_run_crate_with_the_times_of_the_records(run, pack):
    graph = graph_of(pack())
    assert graph["./"]["datePublished"] == "2023-11-14T22:15:50+00:00"
    assert {profile["@id"] for profile in graph["./"]["conformsTo"]} == {
        "https://w3id.org/ro/wfrun/process/0.5",
        "https://w3id.org/ro/wfrun/workflow/0.5",
        "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
    }
    assert graph["./"]["mainEntity"] == {"@id": "code/Snakefile"}
    assert "ComputationalWorkflow" in graph["code/Snakefile"]["@type"]
    action = graph["#run"]
    assert action["instrument"] == {"@id": "code/Snakefile"}
    assert (action["startTime"], action["endTime"]) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:15:50+00:00")
    assert {"@id": "results/minimal/claims/claims.csv"} in action["result"]
    assert {file["@id"] for file in action["object"]} == {"configs/resolved.yaml", "configs/1_minimal.yaml"}


def test_words_of_a_user_are_only_data(run, pack):
    Path("results/minimal/tables/table1.csv").write_text('"}],"@graph":[]} </script>\n')
    Path("results/minimal/tables/table1.md").write_text("@id ../../x\n")
    graph = graph_of(pack())
    assert graph["results/minimal/tables/table1.csv"]["contentSize"] == "27"


def test_names_with_letters_of_other_languages_stay_readable(run):
    members = [Member("code/Snakefile", "code", b"a"), Member("configs/1_Grüße 1#.yaml", "configs", b"b")]
    write_archive(Path("run.zip"), "minimal", members)
    with zipfile.ZipFile("run.zip") as archive:
        assert archive.read("configs/1_Grüße 1#.yaml") == b"b"
    assert graph_of("run.zip")["configs/1_Gr%C3%BC%C3%9Fe%201%23.yaml"]["name"] == "configs/1_Grüße 1#.yaml"


def test_a_file_that_changes_meanwhile_is_noticed_and_nothing_is_written(run, monkeypatch):
    member = Member("results/minimal/notes.txt", "results", Path("results/minimal/notes.txt"))
    digest = crate._digest

    def digest_and_change(member):
        try:
            return digest(member)
        finally:
            if isinstance(member.content, Path):
                member.content.write_text("later\n")

    monkeypatch.setattr(crate, "_digest", digest_and_change)
    with pytest.raises(ValueError, match=r"^results/minimal/notes.txt changed while it was packed; wait"):
        write_archive(Path("run.zip"), "minimal", [Member("code/Snakefile", "code", b"a"), member])
    assert not list(Path().glob("*.zip"))
