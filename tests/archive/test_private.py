"""No absolute path, user name, host name or password gets into an archive, and the users' words stay as they are."""

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from finished_run import parquet, record

from ibsgl.archive import private
from ibsgl.archive.private import without_path_values, without_paths

RESULTS = Path("results/minimal")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('File "/home/alice/clone/ibsgl/maps.py", line 3', 'File "<path>/maps.py", line 3'),
        ("cache in /home/alice", "cache in <path>"),
        ("/home/jane.doe/voc/ is read", "<path> is read"),
        ("--root=/scratch/alice/voc,/data/a/x.pt", "--root=<path>,<path>/x.pt"),
        ("sqlite:////home/alice/mlflow.db", "<path>"),
        ("file:///home/alice/a.tar", "<path>/a.tar"),
        ("https://alice:secret@host.org/a/b", "https://host.org/a/b"),
        ("results/shapes/a.csv, 3/4, 1.5 it/s, and/or, a/b/c", "results/shapes/a.csv, 3/4, 1.5 it/s, and/or, a/b/c"),
        ("https://host.org/a/b.html and ../a/b and ~/voc/x", "https://host.org/a/b.html and ../a/b and ~/voc/x"),
    ],
)
def test_paths_in_a_log_are_shortened(text, expected):
    assert without_paths(text) == expected


def test_a_folder_with_a_space_is_shortened(tmp_path, monkeypatch):
    folder = tmp_path / "my clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert without_paths(f"{folder}/ibsgl/maps.py: 1") == "<path>/maps.py: 1"


def test_names_of_host_and_user_are_removed_from_logs(monkeypatch):
    monkeypatch.setattr(private.socket, "gethostname", lambda: "node7.cluster.example")
    monkeypatch.setattr(private.getpass, "getuser", lambda: "alice")
    assert without_paths("alice on node7: [node7.cluster.example] malice") == "<name> on <name>: [<name>] malice"
    # In a container the user is root, which is also a word.
    monkeypatch.setattr(private.getpass, "getuser", lambda: "root")
    assert without_paths("the root of alice") == "the root of alice"


def test_a_user_without_a_name_is_no_error(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(private.getpass, "getuser", nameless)
    assert without_paths("text") == "text"


def test_names_of_classes_are_no_paths():
    content = {"data": {"root": "/home/alice/voc", "classes": ["/m/0k4j/a", "b"]}, "labels": {"rise": "/a/b"}}
    assert without_path_values(content) == {
        "data": {"root": "<path>", "classes": ["/m/0k4j/a", "b"]},
        "labels": {"rise": "/a/b"},
    }
    assert without_path_values(["file:///a/b/c.tar", 1, None, "https://a:b@c/d"]) == [
        "<path>/c.tar",
        1,
        None,
        "https://c/d",
    ]


def test_no_path_is_in_any_file_of_an_archive(run, pack):
    secret = "/scratch/alice/secret"
    (RESULTS / "logs" / "index.log").write_bytes(f"reads {secret}/a.jpg and {run}/x.py \xff".encode("latin-1"))
    text = Path("minimal.yaml").read_text()
    Path("minimal.yaml").write_text(f"# of {secret}/notes\n{text}")
    record(RESULTS, "resnet", {"network": {"weights": f"{secret}/net.pt"}}, started=1.7e9)
    facts = {"settings": {"guided/rise": {"shards": 2, "network": {"weights": f"{secret}/net.pt"}}}}
    parquet(RESULTS / "resnet/0/evaluation/0/scores.parquet", facts)
    parquet(RESULTS / "index.parquet", {"root": secret, "class_names": ["/m/0k4j", "a"]})
    # Nothing in the ZIP is compressed, so that its bytes show all text; Parquet has its metadata in plain text too.
    content = pack().read_bytes()
    assert b"alice" not in content
    assert bytes(run) not in content
    with zipfile.ZipFile("run.zip") as archive:
        archive.extractall("unpacked")
        graph = json.loads(archive.read("ro-crate-metadata.json"))["@graph"]
    changed = {entity["@id"] for entity in graph if "<path>" in str(entity.get("description"))}
    assert changed == {
        "configs/1_minimal.yaml",
        *(f"results/minimal/{name}" for name in ("logs/index.log", "records/resnet.json", "index.parquet")),
        "results/minimal/resnet/0/evaluation/0/scores.parquet",
    }
    unpacked = Path("unpacked")
    assert yaml.safe_load((unpacked / "configs/1_minimal.yaml").read_text()) == yaml.safe_load(text)
    assert (unpacked / RESULTS / "logs/index.log").read_bytes() == b"reads <path> and <path>/x.py \xff"
    index = pq.read_table(unpacked / RESULTS / "index.parquet")
    assert json.loads(index.schema.metadata[b"ibsgl"]) == {"root": "<path>", "class_names": ["/m/0k4j", "a"]}
    assert index.to_pydict() == {"value": [1.5, 2.5]}


@pytest.mark.filterwarnings("ignore:.* is not a record")
@pytest.mark.parametrize("name", ["records/table1.json", "index.parquet"])
def test_a_broken_file_is_one_line(run, pack, name):
    (RESULTS / name).write_text("{")
    with pytest.raises(ValueError, match=rf"^results/minimal/{name} cannot be read \([^\n]+\); make it again$"):
        pack()
