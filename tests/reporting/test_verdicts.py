"""Verdicts and Holm's correction, on cases worked out by hand and against statsmodels."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ibsgl.reporting.statistics import Estimate, crossed_estimate
from ibsgl.reporting.verdicts import Evidence, Verdict, decide, judge

SUPPORTED, CONTRADICTED, IRRELEVANT, UNRESOLVED, UNTESTED = Verdict


def normal(mean, standard_error=1.0, replicates=10):
    """An estimate whose quantiles are the normal ones to four digits."""
    images = 10**6
    half = 1.959964 * standard_error
    return Estimate(mean, mean - half, mean + half, standard_error, replicates, images, (mean,) * replicates, 0.0)


@pytest.mark.parametrize(
    ("mean", "superiority", "non_inferiority"),
    [
        (6.0, SUPPORTED, SUPPORTED),
        (4.97, SUPPORTED, SUPPORTED),
        (4.95, UNRESOLVED, SUPPORTED),
        (1.03, IRRELEVANT, SUPPORTED),
        (1.05, UNRESOLVED, SUPPORTED),
        (0.0, IRRELEVANT, SUPPORTED),
        (-1.03, IRRELEVANT, SUPPORTED),
        (-1.05, UNRESOLVED, UNRESOLVED),
        (-3.0, UNRESOLVED, UNRESOLVED),
        (-4.95, UNRESOLVED, UNRESOLVED),
        (-4.97, CONTRADICTED, CONTRADICTED),
    ],
)
def test_one_estimate(mean, superiority, non_inferiority):
    # The interval is mean ± 1.96 and the smallest effect is 3: 3 + 1.96 = 4.96 and 3 − 1.96 = 1.04.
    assert judge(Evidence((normal(mean),), 3.0)) == superiority
    assert judge(Evidence((normal(mean),), 3.0, "non-inferiority")) == non_inferiority


def test_an_interval_that_touches_the_boundary_decides_nothing():
    exact = crossed_estimate(np.full((5, 4), 3.0))
    assert judge(Evidence((exact,), 3.0)) == UNRESOLVED
    assert judge(Evidence((exact,), 2.9)) == SUPPORTED
    assert judge(Evidence((exact,), 3.1)) == IRRELEVANT
    assert judge(Evidence((exact,), 0.0)) == SUPPORTED
    assert judge(Evidence((crossed_estimate(np.zeros((5, 4))),), 0.0)) == UNRESOLVED


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((9, 9, 9), SUPPORTED),
        ((9, 9, 4), UNRESOLVED),
        ((9, 9, 0), IRRELEVANT),
        ((0, 0.5, 0), IRRELEVANT),
        ((9, 9, -9), CONTRADICTED),
        ((0, -9, 9), CONTRADICTED),
        # 1 of 3 is beyond −3 at 95 % (1.96), but not at the 98.33 % (2.39) of three estimates.
        ((9, 9, -5.2), UNRESOLVED),
        ((9, 9, -5.5), CONTRADICTED),
    ],
)
def test_several_estimates(means, expected):
    assert judge(Evidence(tuple(normal(mean) for mean in means), 3.0)) == expected


def test_too_few_replicates_or_nothing():
    few = Evidence((normal(100), normal(100, replicates=4)), 3.0)
    assert judge(few) == UNRESOLVED
    assert judge(few, minimum=4) == SUPPORTED
    assert few.p_value() == 1
    assert judge(Evidence((normal(100, replicates=5),), 3.0)) == SUPPORTED
    assert judge(Evidence((), 3.0)) == UNTESTED
    assert judge(Evidence((crossed_estimate([[5.0]]),), 3.0), minimum=1) == UNRESOLVED


@pytest.mark.parametrize("rule", ["superiority", "non-inferiority"])
def test_p_value_is_the_level_at_which_the_verdict_turns(rule):
    rng = np.random.default_rng(0)
    resolved = 0
    for _ in range(60):
        estimates = tuple(
            crossed_estimate(rng.normal(rng.uniform(-6, 6), 2, (6, 1)) + rng.normal(0, 3, (6, 9)))
            for _ in range(rng.integers(1, 4))
        )
        claim = Evidence(estimates, 2.0, rule)
        p = claim.p_value()
        if 1e-9 < p < 0.98:
            resolved += 1
            assert judge(claim, 1 - p * 1.001) != UNRESOLVED
            assert judge(claim, 1 - p * 0.999) == UNRESOLVED
    assert resolved > 30


def test_holm_by_hand():
    # Distances from the nearest boundary, in standard errors: 3, 2.2, 2.2, 1.9. Their two-sided p-values are 0.0027, 0.0278
    # twice and 0.0574. Of four, 0.0027 ≤ 0.05/4 is decided, and 0.0278 > 0.05/3 is not. So nothing later is decided either.
    claims = [Evidence((normal(mean),), 3.0) for mean in (5.2, 6.0, 5.2, 4.9)]
    first, second, third, last = decide(claims)
    assert (first.verdict, second.verdict, third.verdict, last.verdict) == (
        UNRESOLVED,
        SUPPORTED,
        UNRESOLVED,
        UNRESOLVED,
    )
    assert second.p == pytest.approx(4 * 0.0027, rel=0.01)
    assert first.p == third.p == pytest.approx(3 * 0.02781, rel=0.01)
    # 1 · 0.0574 would be less than that of the claim before.
    assert last.p == first.p
    assert second.level == pytest.approx(1 - 0.05 / 4)
    assert [decision.level for decision in (first, third, last)] == pytest.approx([1 - 0.05 / 3] * 3)
    half = stats.norm.ppf(1 - 0.05 / 8)
    assert (second.low, second.high) == pytest.approx((6 - half, 6 + half), rel=1e-4)
    assert second.intervals == ((second.low, second.high),)


def test_a_later_claim_may_need_less():
    # Alone 2.2 standard errors are enough, as the last of two claims too, as the first of two they are not.
    alone = Evidence((normal(5.2),), 3.0)
    assert decide([alone])[0].verdict == SUPPORTED
    assert [decision.verdict for decision in decide([alone, Evidence((normal(9.0),), 3.0)])] == [SUPPORTED, SUPPORTED]
    assert [decision.verdict for decision in decide([alone, alone])] == [UNRESOLVED, UNRESOLVED]


def test_holm_agrees_with_statsmodels_and_with_its_intervals():
    rng = np.random.default_rng(1)
    for _ in range(20):
        claims = [
            Evidence(
                (crossed_estimate(rng.normal(rng.uniform(-5, 5), 1, (6, 1)) + rng.normal(0, 3, (6, 20))),),
                1.5,
                rule,
            )
            for rule in ("superiority", "superiority", "non-inferiority", "superiority")
        ]
        rejected, adjusted, *_ = multipletests([claim.p_value() for claim in claims], 0.05, "holm")
        found = decide(claims)
        assert [decision.p for decision in found] == pytest.approx(adjusted.tolist())
        assert [decision.verdict != UNRESOLVED for decision in found] == rejected.tolist()
        # The verdict is what the shown interval says.
        assert [judge(claim, decision.level) for claim, decision in zip(claims, found, strict=True)] == [
            decision.verdict for decision in found
        ]


def test_claims_without_data():
    untested, few, strong = (
        Evidence((), 3.0),
        Evidence((normal(9.0, replicates=3),), 3.0),
        Evidence((normal(9.0),), 3.0),
    )
    first, second, third = decide([untested, few, strong])
    assert first.verdict == UNTESTED
    assert math.isnan(first.p)
    assert math.isnan(first.level)
    assert first.intervals == ()
    assert (second.verdict, second.p) == (UNRESOLVED, 1.0)
    # The claim below the minimum counts as one of two, the untested one does not count.
    assert (third.verdict, third.level) == (SUPPORTED, 0.975)
    assert decide([]) == []
    assert [decision.verdict for decision in decide([untested, untested])] == [UNTESTED, UNTESTED]


def test_refusals():
    with pytest.raises(ValueError, match="at least 0, not -1"):
        Evidence((), -1)
    with pytest.raises(ValueError, match="at least 0, not nan"):
        Evidence((), math.nan)
    with pytest.raises(ValueError, match="superiority, non-inferiority, not equal"):
        Evidence((), 1.0, "equal")
    with pytest.raises(ValueError, match="error must be"):
        decide([], error=5)
    with pytest.raises(ValueError, match="level must be"):
        judge(Evidence((normal(1.0),), 1.0), level=95)
