"""Intervals against scipy, statsmodels, explicit loops and cases known exactly."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ibsgl.reporting.statistics import (
    crossed_estimate,
    proportion_interval,
)


def test_crossed_estimate_by_hand():
    # Means: 2 and 4 of the replicates, 1, 3 and 5 of the images. No interaction, so MS_E = 0.
    # MS_R = 3·(1 + 1)/1 = 6, MS_I = 2·(4 + 0 + 4)/2 = 8, variance (6 + 8)/6.
    found = crossed_estimate([[0, 2, 4], [2, 4, 6]])
    assert (found.mean, found.replicates, found.images, found.by_replicate) == (3, 2, 3, (2, 4))
    assert found.standard_error == pytest.approx(math.sqrt(14 / 6))
    assert found.replicate_share == pytest.approx(6 / 14)
    half = found.standard_error * (6 * 12.7062 + 8 * 4.30265) / 14
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-5)
    assert found.interval(0.95) == (found.low, found.high)


@pytest.mark.parametrize(("replicates", "images", "image_sd"), [(3, 8, 2.0), (5, 4, 0.0), (2, 2, 1.0)])
def test_crossed_estimate_agrees_with_statsmodels(replicates, images, image_sd):
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(2)
    values = (
        50
        + rng.normal(0, 1, (replicates, 1))
        + rng.normal(0, image_sd, images)
        + rng.normal(0, 1, (replicates, images))
    )
    r, i = np.indices(values.shape)
    frame = pd.DataFrame({"value": values.ravel(), "r": r.ravel(), "i": i.ravel()})
    table = anova_lm(ols("value ~ C(r) + C(i)", frame).fit())
    squares = table["sum_sq"] / table["df"]
    of_replicates, of_images = squares["C(r)"], max(squares["C(i)"] - squares["Residual"], 0)
    found = crossed_estimate(values)
    assert found.standard_error**2 == pytest.approx((of_replicates + of_images) / values.size)
    assert found.replicate_share == pytest.approx(of_replicates / (of_replicates + of_images))


def test_one_replicate_or_one_image_is_the_ordinary_interval():
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
    for shape in ((1, 12), (12, 1)):
        found = crossed_estimate(values.reshape(shape), level=0.9)
        assert (found.low, found.high) == pytest.approx(expected)
        assert found.p_above(2.5) == pytest.approx(stats.ttest_1samp(values, 2.5, alternative="greater").pvalue)
        assert found.p_below(2.5) == pytest.approx(stats.ttest_1samp(values, 2.5, alternative="less").pvalue)


def test_equal_replicates_are_one_replicate():
    values = np.random.default_rng(0).normal(3, 2, 12)
    once, often = crossed_estimate(values[None]), crossed_estimate(np.tile(values, (4, 1)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_p_values_belong_to_the_intervals():
    rng = np.random.default_rng(1)
    found = crossed_estimate(rng.normal(0, 1, (4, 1)) + rng.normal(0, 5, 30) + rng.normal(0, 1, (4, 30)))
    assert 0.1 < found.replicate_share < 0.9
    for level in (0.5, 0.9, 0.99, 0.99999):
        low, high = found.interval(level)
        assert found.p_above(low) == found.p_below(high) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert found.p_above(high) == pytest.approx((1 + level) / 2)
    assert found.p_above(found.mean) == 0.5
    far = crossed_estimate(np.random.default_rng(1).normal(0, 1e-30, (3, 2000)) + 1)
    assert 0 <= far.p_above(-1e9) < 1e-4


def test_no_variance_and_no_information():
    found = crossed_estimate(np.full((3, 5), 0.1))
    assert (found.low, found.mean, found.high, found.standard_error) == (0.1, 0.1, 0.1, 0)
    assert (found.p_above(0.1), found.p_above(0.0), found.p_below(0.0), found.p_below(0.2)) == (1, 0, 1, 0)
    found = crossed_estimate([[0.25]])
    assert (found.low, found.mean, found.high) == (-math.inf, 0.25, math.inf)
    assert (found.p_above(-9), found.p_below(9), found.interval(0.5)) == (1, 1, (-math.inf, math.inf))


def test_estimate_refusals():
    with pytest.raises(ValueError, match="2 of the values"):
        crossed_estimate([[0.1, np.nan, np.inf]])
    for shape in ((0, 3), (3, 0), (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match="the shape"):
            crossed_estimate(np.zeros(shape))
    with pytest.raises(ValueError, match="level"):
        crossed_estimate([[1.0, 2.0]], level=95)
    with pytest.raises(ValueError, match="level"):
        crossed_estimate([[1.0, 2.0]]).interval(1)


def test_proportion_interval_by_hand():
    # All of n: (n / (n + z²), 1).
    low, high = proportion_interval(96, 96)
    assert low == pytest.approx(96 / (96 + 1.959964**2))
    assert high == pytest.approx(1)
    assert proportion_interval(0, 96) == pytest.approx((1 - high, 1 - low))
    # Half of n: ½ ± z / (2·√(n + z²)).
    half = 1.959964 / 2 / math.sqrt(40 + 1.959964**2)
    assert proportion_interval(20, 40) == pytest.approx((0.5 - half, 0.5 + half))
    for wrong in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="no proportion"):
            proportion_interval(*wrong)
