"""The simulation of verdicts: its data have the variances that it states, and the command writes its table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ibsgl.reporting.verdicts import Verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import verdict_simulation

    return verdict_simulation


@pytest.mark.parametrize("ratio", [0.1, 10])
def test_variances(simulation, ratio):
    values = simulation.studies(4, 6, ratio, 20000, np.random.default_rng(0))
    assert values.mean((1, 2)).var() == pytest.approx(1, rel=0.05)
    # The covariance of two images in one replicate is the replicate's variance, and the reverse.
    of_replicate = np.mean(values[:, 0, 0] * values[:, 0, 1]) / 4
    of_image = np.mean(values[:, 0, 0] * values[:, 1, 0]) / 6
    assert of_replicate / of_image == pytest.approx(ratio, rel=0.3)


def test_wrong_verdicts(simulation):
    supported, contradicted, irrelevant = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_RELEVANT_EFFECT
    assert simulation.wrong_verdicts(2) == {contradicted, irrelevant}
    assert simulation.wrong_verdicts(1) == {supported, contradicted, irrelevant}
    assert simulation.wrong_verdicts(0) == {supported, contradicted}
    assert simulation.wrong_verdicts(-2) == {supported, irrelevant}


def test_command(simulation, tmp_path):
    out = tmp_path / "new" / "verdicts.csv"
    result = CliRunner().invoke(simulation.app, ["--images", "12", "--draws", "40", "--out", str(out)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    verdicts = ["supported", "contradicted", "no relevant effect", "not resolved"]
    assert table[verdicts].sum(axis=1).to_numpy() == pytest.approx(np.ones(len(table)))
    below = (table["replicates"] == 3) & (table["minimum"] == 5)
    assert (table.loc[below, "not resolved"] == 1).all()
    usual = table[(table["replicates"] == 10) & (table["ratio"] == 0.1)].set_index("effect")
    assert usual.loc[2, "supported"] > 0.8
    assert usual.loc[-2, "contradicted"] > 0.8
    assert usual.loc[0, "no relevant effect"] > 0.8


def test_committed_table_meets_the_requirements(simulation):
    table = pd.read_csv(ROOT / "docs" / "measured" / "verdicts.csv")
    assert set(table["replicates"]) == set(simulation.REPLICATES)
    assert set(table["ratio"]) == set(simulation.RATIOS)
    assert set(table["effect"]) == set(simulation.EFFECTS)
    assert table["coverage"].min() >= simulation.COVERAGE
    assert table["wrong"].max() <= simulation.WRONG
