"""A package of one file, outside of the repository, adds a method, a metric, a guidance loss and a teacher by entry points."""

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from workspaces import ROOT, SNAKEMAKE, configured, environment, workspace

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "my-package"
version = "1.0"

[tool.setuptools]
py-modules = ["my_package"]

[project.entry-points."ibsgl.attributions"]
edges = "my_package:Edges"

[project.entry-points."ibsgl.metrics"]
contrast = "my_package:Contrast"

[project.entry-points."ibsgl.guidance"]
distance = "my_package:Distance"

[project.entry-points."ibsgl.teachers"]
middle = "my_package:Middle"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the package with the documentation's examples is built and installed."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    page = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(# my_package/\w+\.py\n.+?)```", page, flags=re.DOTALL)
    assert len(examples) == 3
    (source / "my_package.py").write_text("\n\n".join(examples), encoding="utf-8")
    (source / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    uv = shutil.which("uv")
    pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, *options, str(source)], check=True, cwd=source)
    return site


def test_each_is_a_row_a_column_and_a_variant_of_a_run(installed, tmp_path):
    folder = workspace(tmp_path / "clone")
    config = configured(
        folder,
        "minimal",
        methods={"edges": {"power": 0.5}},
        methods_on={"variants": ["pretrained"], "replicates": 1},
        further_metrics={"contrast": {"floor": 0.001}},
        variants={
            "mine": {
                "loss": "distance",
                "settings": {"weight": 10.0},
                "teacher": "middle",
                "teacher_settings": {"width": 0.2},
            }
        },
    )
    tables = "results/minimal/tables"
    targets = [f"{tables}/table1.csv", f"{tables}/metrics_resnet.csv"]
    path = os.pathsep.join([str(installed), environment().get("PYTHONPATH", "")]).rstrip(os.pathsep)
    run = subprocess.run(
        [SNAKEMAKE, *targets, "--cores", "2", "--configfile", config],
        cwd=folder,
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    table1, metrics, comparisons = (
        pd.read_csv(folder / tables / f"{name}.csv") for name in ("table1", "metrics_resnet", "comparisons_resnet")
    )
    assert "edges" in set(table1["method"])
    measured = metrics[(metrics["metric"] == "contrast") & (metrics["method"] == "edges")]
    assert measured["value"].notna().all()
    assert len(measured)
    assert "mine - control" in set(comparisons["comparison"])
    text = (folder / tables / "comparisons_resnet.md").read_text(encoding="utf-8")
    assert "Variant mine: the loss distance (weight 10.0), teacher middle. Sees boxes: no." in text
