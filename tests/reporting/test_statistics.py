"""Bootstrap intervals against scipy, an explicit loop and cases known exactly."""

import numpy as np
import pytest
from scipy import stats

from ibsgl.reporting.statistics import bootstrap_interval, bootstrap_intervals, paired_interval


def test_singleton_clusters_agree_with_scipy():
    values = np.random.default_rng(0).beta(2, 5, 80)
    ours = bootstrap_interval(values, np.arange(80), seed=1, resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=2).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.003)


def test_unequal_clusters_agree_with_an_explicit_loop():
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 15, 60)
    values = rng.random(60) + 0.2 * clusters
    names, means = np.unique(clusters), []
    for _ in range(4000):
        drawn = np.concatenate([values[clusters == name] for name in rng.choice(names, len(names))])
        means.append(drawn.mean())
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, clusters, seed=4, level=0.9) == pytest.approx(tuple(expected), abs=0.06)


def test_groups_agree_with_an_explicit_loop():
    rng = np.random.default_rng(5)
    clusters, groups = rng.integers(0, 12, 70), rng.choice(["cat", "dog", "rare"], 70, p=[0.6, 0.35, 0.05])
    values = rng.random(70) + (groups == "rare")
    names, means = np.unique(clusters), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(clusters == name) for name in rng.choice(names, len(names))])
        means.append(np.mean([values[rows][groups[rows] == g].mean() for g in np.unique(groups[rows])]))
    expected = np.quantile(means, [0.025, 0.975])
    ours = bootstrap_interval(values, clusters, seed=6, groups=groups)
    assert ours == pytest.approx(tuple(expected), abs=0.03)


def test_degenerate_cases_are_exact():
    assert bootstrap_interval([0.25] * 7, range(7), seed=0) == (0.25, 0.25)
    assert bootstrap_interval([0.0, 1.0, 0.5], ["a", "a", "a"], seed=0) == (0.5, 0.5)


def test_two_clusters_by_hand():
    # The mean is 0, ½ or 1 with probabilities ¼, ½, ¼, so a 95 % interval is everything and a 40 % one the middle.
    assert bootstrap_interval([0.0, 1.0], [0, 1], seed=0) == (0, 1)
    assert bootstrap_interval([0.0, 1.0], [0, 1], seed=0, level=0.4) == (0.5, 0.5)


def test_duplicated_rows_carry_no_information():
    values = np.random.default_rng(0).random(40)
    once = bootstrap_interval(values, np.arange(40), seed=0)
    twice = np.repeat(values, 2)
    assert bootstrap_interval(twice, np.repeat(np.arange(40), 2), seed=0) == pytest.approx(once, abs=1e-12)
    as_rows = bootstrap_interval(twice, np.arange(80), seed=0)
    assert as_rows[1] - as_rows[0] < 0.8 * (once[1] - once[0])


def test_one_seed_one_interval():
    values, clusters = np.random.default_rng(0).random(30), np.arange(30) // 2
    assert bootstrap_interval(values, clusters, seed=7) == bootstrap_interval(values, clusters, seed=7)
    assert bootstrap_interval(values, clusters, seed=7) != bootstrap_interval(values, clusters, seed=8)


def test_columns_are_resampled_together():
    table, clusters = np.random.default_rng(0).random((30, 3)), np.arange(30) // 2
    low, high = bootstrap_intervals(table, clusters, seed=7)
    for column, interval in zip(table.T, zip(low, high, strict=True), strict=True):
        assert interval == bootstrap_interval(column, clusters, seed=7)


def test_memory_chunks_do_not_change_the_law(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(values, np.arange(30), seed=7)
    monkeypatch.setattr("ibsgl.reporting.statistics._CHUNK", 1000)
    assert bootstrap_interval(values, np.arange(30), seed=7) == pytest.approx(whole, abs=0.005)


def test_pairing_removes_what_is_common():
    rng = np.random.default_rng(0)
    common, noise = rng.random(50) * 10, rng.normal(0, 0.01, 50)
    low, high = paired_interval(common + 0.1 + noise, common, np.arange(50), seed=0)
    assert (low, high) == bootstrap_interval(common + 0.1 + noise - common, np.arange(50), seed=0)
    assert 0.09 < low < high < 0.11


def test_refusals():
    with pytest.raises(ValueError, match="1 of the values to bootstrap are NaN"):
        bootstrap_interval([0.1, np.nan], [0, 1], seed=0)
    with pytest.raises(ValueError, match="NaN"):
        paired_interval([0.1, np.nan], [0, 1], [0, 1], seed=0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], [], seed=0)
    with pytest.raises(ValueError, match="one of each per row"):
        bootstrap_interval([0.1, 0.2], [0], seed=0)
    with pytest.raises(ValueError, match="level in"):
        bootstrap_interval([0.1, 0.2], [0, 1], seed=0, level=95)
    with pytest.raises(ValueError, match="the same shape"):
        paired_interval([0.1, 0.2], [0.1], [0, 1], seed=0)
