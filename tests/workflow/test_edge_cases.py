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
    """Run ``minimal.yaml`` with changes; the claims, by key, and the output."""

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


@pytest.mark.slow
def test_a_control_that_collapses_on_two_classes(run, tmp_path):
    generate(tmp_path / "voc", seed=0, trainval=240, test=36, size=32, progress=False)
    claims, folder = run(
        data=TWO_CLASSES | {"root": str(tmp_path / "voc")},
        classifier__epochs=12,
        guidance__training={"epochs": 2, "batch_size": 8, "lr": 0.5},
    )
    for key in ("localisation", "accuracy", "teacher"):
        assert claims.loc[key, "verdict"] == "not tested"
        assert "the training of the variant control has collapsed" in claims.loc[key, "reason"]
    logs = folder / "results" / "minimal" / "logs" / "resnet" / "0"
    assert "without guidance has lost" in (logs / "control.log").read_text()


@pytest.mark.slow
def test_one_test_image(run):
    claims, folder = run(data__test=1)
    assert set(claims["verdict"]) <= {"not resolved", "not tested"}
    table = pd.read_csv(folder / "results" / "minimal" / "tables" / "table1.csv")
    measured = table[table["value"] != "not run"]
    assert set(measured["low"]) == set(measured["high"]) == {"unknown"}


@pytest.mark.slow
def test_a_flat_teacher(run):
    claims, _ = run(bottleneck={"alpha": 1e9, "steps": 150, "samples": 1})
    assert set(claims["verdict"]) == {"not tested"}
    assert claims.loc["localisation", "reason"].startswith("L^ib is zero on all held-out images (replicate 0)")
