"""A damaged archive is found and the file is named; a whole one tells how its results are made again."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from ibsgl import provenance
from ibsgl.archive import compare, problems, read_facts, reproduce, verify


def rewritten(archive, change):
    """The archive with other files: ``change`` gets and returns a dict of their contents."""
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile("changed.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in change(files).items():
            target.writestr(name, content)
    return Path("changed.zip")


def test_a_whole_archive_has_no_problem(run, pack):
    archive = pack()
    assert problems(archive) == []
    # Nor has one that a person has unpacked and packed again, with another tool and with folders.
    shutil.unpack_archive(archive, "unpacked")
    assert problems(Path(shutil.make_archive("again", "zip", "unpacked"))) == []


def test_a_flipped_bit_is_found_and_the_file_named(run, pack):
    archive = pack()
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        places = {info.filename: info.header_offset + 30 + len(info.filename) for info in opened.infolist()}
        sizes = {info.filename: info.file_size for info in opened.infolist()}
    for name, place in places.items():
        damaged = bytearray(content)
        damaged[place + sizes[name] // 2] ^= 1
        archive.write_bytes(damaged)
        (problem,) = problems(archive)
        assert problem.startswith(f"{name!r} is damaged (")


def test_a_flipped_bit_anywhere_is_found_or_changes_no_file(run, pack):
    archive = pack()
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        whole = {name: opened.read(name) for name in opened.namelist()}
    # The directory at the end, in which a bit can break names, sizes and methods.
    start = content.index(b"PK\x01\x02")
    for place in range(start, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        archive.write_bytes(damaged)
        if not problems(archive):
            # Dates and rights of the ZIP's directory.
            with zipfile.ZipFile(archive) as opened:
                assert {name: opened.read(name) for name in opened.namelist()} == whole


@pytest.mark.parametrize("part", [0, 0.3, 0.99])
def test_half_a_file_is_no_archive(run, pack, part):
    archive = pack()
    archive.write_bytes(archive.read_bytes()[: int(part * archive.stat().st_size)])
    (problem,) = problems(archive)
    assert problem.startswith("run.zip: not readable as a ZIP file (")


CLAIMS = "results/minimal/claims/claims.csv"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda files: files | {CLAIMS: b"claim\n"}, f"{CLAIMS!r} was changed: its SHA-256 is "),
        (lambda files: {name: files[name] for name in files if name != CLAIMS}, f"{CLAIMS!r} is missing"),
        (lambda files: files | {"a\x1b[2J.csv": b"1"}, r"'a\x1b[2J.csv' was added: the metadata do not have it"),
        (lambda files: {CLAIMS: b""}, "ro-crate-metadata.json is missing; this is no archive of `ibsgl archive`"),
        *(
            (
                lambda files, text=text: files | {"ro-crate-metadata.json": text},
                "ro-crate-metadata.json is not the metadata of",
            )
            for text in (
                b"{",
                b"[]",
                b"{}",
                b'{"@graph": 3}',
                b'{"@graph": [{"@id": "a", "@type": "File"}]}',
                b"\xff",
                b"[" * 10**6,
            )
        ),
    ],
)
def test_other_files_are_named(run, pack, change, expected):
    (problem,) = problems(rewritten(pack(), change))
    assert problem.startswith(expected)


def test_a_doubled_file_is_named(run, pack):
    archive = pack()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(CLAIMS, b"claim\n")
    assert f"{CLAIMS!r} is in the archive 2 times" in problems(archive)


def test_a_missing_archive_is_an_error_of_its_own():
    with pytest.raises(FileNotFoundError):
        problems(Path("gone.zip"))


def test_facts_of_another_form_are_one_line(run, pack):
    archive = rewritten(pack(), lambda files: files | {"code/source.json": b'{"made_with": 3}'})
    with pytest.raises(ValueError, match=r"^changed.zip is no archive of `ibsgl archive` \("):
        read_facts(archive)


def test_what_differs_here_is_told(run, pack, monkeypatch):
    here = {"commit": "1" * 40, "dirty": True, "versions": {"torch": "2.0"}}
    monkeypatch.setattr(provenance, "collect", lambda device: here)
    facts = read_facts(pack())
    lines = compare(facts)
    assert lines[0] == f"made with commit {'0' * 40}: 2 records"
    assert lines[1] == f"here: commit {'1' * 40} and changed files"
    assert lines[2].startswith("the code that computes values is the same here")
    assert lines[3] == "other versions here: torch 1.0, here 2.0"
    monkeypatch.setattr(verify, "source_digest", lambda package: "other")
    assert "the code of ibsgl differs here" in compare(facts)

    def gone(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(verify, "source_digest", gone)
    assert "the code of baselines is not here" in compare(facts)
    here |= {"versions": {"torch": "1.0"}}
    assert compare(facts)[-1] == "the same versions here"


def test_each_claim_and_table_has_its_command(run, pack):
    lines = reproduce(read_facts(pack()), Path("there/run.zip"))
    call = "--cores all --configfile run/configs/resolved.yaml"
    assert lines == [
        "the images are generated again",
        "unpack: python -m zipfile -e there/run.zip run",
        f"claims localisation, accuracy: snakemake claims {call}",
        f"table 1: snakemake table1 {call}",
        f"table 3: snakemake table3 {call}",
        f"figures: snakemake figures {call}",
    ]


@pytest.mark.parametrize(
    ("data", "there", "expected"),
    [
        ({"source": "voc", "root": "voc"}, True, "the images are in voc"),
        ({"source": "voc", "root": "voc"}, False, "the images are not here: put them in a folder and set data.root"),
        (
            {"source": "voc", "root": "voc", "download": {"mirrors": ["m"], "archives": [], "images": {"test": 1}}},
            False,
            "the images are downloaded to voc",
        ),
    ],
)
def test_where_the_images_come_from(run, pack, data, there, expected):
    facts = read_facts(pack())
    if there:
        Path("voc").mkdir()
    if "download" in data:
        data["download"]["archives"] = [{"name": "a.tar", "md5": "0" * 32, "bytes": 1}]
    facts.config["data"] = data
    assert reproduce(facts, Path("run.zip"))[0].startswith(expected)


def test_a_config_of_another_version_is_one_line(run, pack):
    facts = read_facts(pack())
    facts.config["colour"] = json.loads("1")
    (line,) = reproduce(facts, Path("run.zip"))
    assert line.startswith(
        "this version of the benchmark cannot use configs/resolved.yaml (colour: there is no such key"
    )
