"""The config of the reproduction, from the archives to the tables, on a small stand-in for the data."""

import re
import shlex
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import yaml
from voc_double import CLASSES, make_archives
from workspaces import ROOT, by_hand, workspace

from ibsgl.config import BUILT_IN_METHODS, SANITY_METHODS, merge
from ibsgl.reporting.tables import NOT_RUN


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A stand-in's archives behind a server: (address, entries of the config)."""
    folder = tmp_path / "served"
    entries = make_archives(folder, {"trainval": 60, "test": 24})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", entries
    server.shutdown()


# Sizes and nothing else: of the images, the networks (the small ones, which have no ImageNet weights), trainings and methods.
SIZES = {
    "device": "cpu",
    "batch_size": 8,
    "shard_size": 12,
    "models": {
        name: {"arch": arch, "weights": None, "image_size": 32, "options": {"width": 8}, "override": {}}
        for name, arch in (("resnet50", "resnet_small"), ("vgg16", "vgg_small"))
    },
    "classifier": {"epochs": 1},
    "bottleneck": {"steps": 2, "samples": 2},
    "guidance": {"steps": 1, "training": {"epochs": 1}},
    "methods": {
        "extremal_perturbation": {"iterations": 2},
        "rise": {"masks": 8},
        "integrated_gradients": {"steps": 2},
    },
    "deletion": {"points": 2, "repeats": 1},
    "figures": {"examples": 1},
}


@pytest.mark.slow
def test_the_reproduction_on_a_stand_in_goes_from_the_archives_to_the_four_tables(
    dry_run, fork, served, tmp_path, monkeypatch
):
    """Every command of its graph, in the graph's order, in one process: starting sixty would take minutes."""
    address, entries = served
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = workspace(tmp_path / "clone")
    download = {"mirrors": [address], "archives": entries, "images": {"trainval": 60, "test": 24}}
    loaded = yaml.safe_load((ROOT / "config" / "voc2007.yaml").read_text(encoding="utf-8"))
    sizes = merge(loaded, SIZES | {"data": {"download": download}})
    (folder / "sizes.yaml").write_text(yaml.safe_dump(sizes))
    _, output = dry_run(folder, "sizes.yaml")
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (ibsgl .*)$", output, re.M)]
    assert commands[0][1] == "fetch"
    fork(by_hand, folder, [command[1:-2] for command in commands])
    results = folder / "results" / "voc2007"
    scores = pd.concat(map(pd.read_parquet, sorted(results.glob("resnet50/0/evaluation/*/scores.parquet"))))
    scores = scores[(scores["variant"] == "pretrained") & (scores["scored_on"] == "pretrained")]
    pairs = pd.read_parquet(results / "index.parquet").query("split == 'test'")
    assert pairs["image_id"].nunique() == 24
    assert len(pairs) > 24
    assert (scores.groupby("method").size() == len(pairs)).all()
    assert set(scores["class_name"]) <= set(CLASSES)
    for number in (1, 2, 3, 4):
        table = pd.read_csv(results / "tables" / f"table{number}.csv")
        ran = table[table["value"] != NOT_RUN]
        assert set(ran["method"]) == {*loaded["methods"], *BUILT_IN_METHODS, *SANITY_METHODS}
        assert set(table["method"]) == set(ran["method"])
        assert "not comparable" in (results / "tables" / f"table{number}.md").read_text()
    for number in (2, 3, 4):
        assert (results / "figures" / f"figure{number}.png").stat().st_size > 0
    classes = pd.read_csv(results / "tables" / "classification_resnet50.csv")
    assert set(CLASSES) <= set(classes["class"])
