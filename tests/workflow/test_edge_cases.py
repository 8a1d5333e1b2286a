"""Whole runs at the edge of what can be answered: each ends, and its claims say what is missing."""

import subprocess

import pandas as pd
import pytest
from workspaces import SNAKEMAKE, configured, environment, workspace

from ibsgl.data.sources.shapes import generate

TWO_CLASSES = {
    "source": "voc",
    "splits": {"train": "trainval", "test": "test"},
    "held_out": 0.3,
    "classes": ["cross", "disk"],
}


@pytest.fixture
def run(tmp_path):
    """Run ``minimal.yaml`` with changes; the claims, by key, and the folder."""

    def complete(**changes):
        folder = workspace(tmp_path / "clone")
        config = configured(folder, "edge", **changes)
        command = [SNAKEMAKE, "--configfile", config, "--cores", "2"]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "Traceback" not in output
        for file in (folder / "results" / "minimal" / "logs").rglob("*.log"):
            assert "Traceback" not in file.read_text(), file
        return pd.read_csv(folder / "results" / "minimal" / "claims" / "claims.csv").set_index("claim"), folder

    return complete


@pytest.fixture
def two_classes(tmp_path):
    """A folder with generated images of two classes."""
    root = tmp_path / "voc"
    generate(root, seed=0, trainval=240, test=36, size=32, progress=False)
    for file in (root / "ImageSets" / "Main").glob("*.txt"):
        texts = {name: (root / "Annotations" / f"{name}.xml").read_text() for name in file.read_text().split()}
        names = [
            name
            for name, text in texts.items()
            if any(f"<name>{each}</name>" in text for each in TWO_CLASSES["classes"])
        ]
        file.write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.mark.slow
def test_a_control_that_collapses_on_two_classes(run, two_classes):
    claims, folder = run(
        data=TWO_CLASSES | {"root": str(two_classes)},
        classifier={"optimizer": "adamw", "schedule": "one_cycle", "epochs": 12, "batch_size": 8, "lr": 3e-3},
        # Such a decay takes all weights to zero.
        guidance__training={"epochs": 2, "batch_size": 8, "lr": 0.01, "weight_decay": 50},
    )
    for key in ("localisation", "accuracy", "teacher"):
        assert claims.loc[key, "verdict"] == "not tested"
        assert "the training of the variant control has collapsed" in claims.loc[key, "reason"]
    logs = folder / "results" / "minimal" / "logs" / "resnet" / "0"
    assert "without guidance has lost" in (logs / "control.log").read_text()


@pytest.mark.slow
def test_one_test_image_of_two_classes(run, two_classes):
    listed = two_classes / "ImageSets" / "Main" / "test.txt"
    listed.write_text(listed.read_text().split()[0])
    claims, folder = run(data=TWO_CLASSES | {"root": str(two_classes)})
    assert set(claims["verdict"]) <= {"not resolved", "not tested"}
    table = pd.read_csv(folder / "results" / "minimal" / "tables" / "table1.csv")
    measured = table[table["value"] != "not run"]
    assert set(measured["low"]) == set(measured["high"]) == {"unknown"}


@pytest.mark.slow
def test_a_flat_teacher(run):
    claims, _ = run(bottleneck={"gamma": -200, "steps": 2, "samples": 2})
    assert set(claims["verdict"]) == {"not tested"}
    assert claims.loc["localisation", "reason"].startswith("L^ib is zero on all held-out images (replicate 0)")
