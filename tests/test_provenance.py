"""Facts, digests and records: what they react to, and what they do not."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ibsgl import provenance
from ibsgl.provenance import collect, digest_file, read_records, write_record


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed file, ``code.py``."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("environment/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "x")
    return tmp_path


def test_commit_and_dirty_flag(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert provenance.commit(repository / "code.py") == (head, False)
    (repository / "new.py").write_text("")
    assert provenance.commit(repository / "code.py") == (head, True)


def test_an_ignored_file_is_not_the_repositorys_code(repository):
    installed = repository / "environment"
    installed.mkdir()
    (installed / "code.py").write_text("x = 1\n")
    assert provenance.commit(installed / "code.py") == ("unknown", True)


def test_no_repository_or_no_git_is_unknown(repository, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    assert provenance.commit(outside) == ("unknown", True)
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(repository / "code.py") == ("unknown", True)


def test_facts_are_json_without_paths():
    facts = collect("cpu", data_digest="abc")
    assert facts["data_digest"] == "abc"
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "torchvision", "numpy", "ibsgl", "snakemake", "mlflow"} <= facts["versions"].keys()
    assert facts["device"]
    text = json.dumps(facts)
    assert str(Path(__file__).resolve().parents[1]) not in text
    assert str(Path.home()) not in text


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-4's own example.
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def record(directory, result_id="resnet/guided/rise", started=100.0, **changes):
    facts = {"settings": {"seed": 1}, "metrics": {"ebpg": 0.5}, "tags": {"commit": "abc"}, "seconds": 2.0}
    return write_record(directory, result_id, "evaluation", started=started, **(facts | changes))


def test_records_come_back_oldest_first(tmp_path):
    history = [{"epoch": 1, "loss": 2.0}]
    path = record(tmp_path, started=200.0, history=history, artifacts=[Path("results", "a.csv")])
    record(tmp_path, "table1", started=100.0)
    assert path == tmp_path / "resnet__guided__rise.json"
    assert [r["result_id"] for r in read_records(tmp_path)] == ["table1", "resnet/guided/rise"]
    expected = {
        "result_id": "resnet/guided/rise",
        "kind": "evaluation",
        "settings": {"seed": 1},
        "metrics": {"ebpg": 0.5},
        "history": history,
        "artifacts": ["results/a.csv"],
        "tags": {"commit": "abc"},
        "started": 200.0,
        "seconds": 2.0,
        "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert read_records(tmp_path)[1] == expected
    assert not list(tmp_path.glob(".*"))


def test_a_new_execution_replaces_the_record_and_has_another_digest(tmp_path):
    record(tmp_path, started=100.0)
    (before,) = read_records(tmp_path)
    record(tmp_path, started=101.0)
    (after,) = read_records(tmp_path)
    assert before["digest"] != after["digest"]


def test_a_record_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    record(tmp_path)
    before = read_records(tmp_path)
    with pytest.raises(TypeError):
        record(tmp_path, settings={"network": object()})
    assert read_records(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_history_without_epoch_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rise: .*epoch"):
        record(tmp_path, history=[{"loss": 1.0}])


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_that_is_no_record_is_passed_over_aloud(tmp_path, content):
    record(tmp_path)
    (tmp_path / "stray.json").write_text(content)
    with pytest.warns(UserWarning, match=r"stray\.json is not a record"):
        assert len(read_records(tmp_path)) == 1


def test_no_folder_no_records(tmp_path):
    assert read_records(tmp_path / "none") == []


def test_a_folder_digest_sees_every_change_inside(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "c.xml"
    file.write_text("1")
    before = provenance.folder_digest(tmp_path)
    assert provenance.folder_digest(tmp_path) == before
    (tmp_path / "a" / "d.jpg").write_text("new")
    added = provenance.folder_digest(tmp_path)
    (tmp_path / "a" / "d.jpg").unlink()
    assert provenance.folder_digest(tmp_path) == before != added
    file.write_text("22")
    assert provenance.folder_digest(tmp_path) != before
