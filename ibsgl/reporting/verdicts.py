"""Verdicts on claims: what an interval says about a claim, and Holm's correction over several claims.

Effects are oriented: positive is the direction that the paper claims. The smallest effect that matters is fixed before the run.
A verdict comes from where the interval lies, so an effect can be significant and still have no relevance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

import numpy as np

from ibsgl.reporting.statistics import Estimate

# With fewer replicates, every verdict is "not resolved".
MINIMUM_REPLICATES = 5

# How a verdict comes out of an interval: the effect is large enough, or not too far below zero.
Rule = Literal["superiority", "non-inferiority"]


class Verdict(StrEnum):
    """What the data say about a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NO_RELEVANT_EFFECT = "no relevant effect"
    NOT_RESOLVED = "not resolved"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Evidence:
    """What a claim rests on.

    A claim with several estimates (over several methods, or on several networks) is about the smallest of their true effects:
    it holds only where each of them is large enough.

    Attributes:
        estimates: oriented effects. Without any, the claim is not tested.
        smallest: the smallest effect that matters, or the margin of non-inferiority; at least 0, in the estimates' unit.
        rule: see :func:`judge`.
    """

    estimates: tuple[Estimate, ...]
    smallest: float
    rule: Rule = "superiority"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smallest) and self.smallest >= 0):
            raise ValueError(f"the smallest effect that matters must be a number of at least 0, not {self.smallest}")
        if self.rule not in get_args(Rule):
            raise ValueError(f"the rule must be one of {', '.join(get_args(Rule))}, not {self.rule}")

    @property
    def replicates(self) -> int:
        """Replicates of the estimate that has the fewest; 0 without estimates."""
        return min((estimate.replicates for estimate in self.estimates), default=0)

    def interval(self, level: float) -> tuple[float, float]:
        """The interval of the smallest of the true effects at ``level``: ``(low, high)``.

        ``low`` is the lowest of the estimates' lower ends: no correction is needed, since all effects must be above it.
        ``high`` is the lowest of the upper ends. One of n estimates is enough to be below it, so these are taken at the
        Bonferroni level 1 − (1 − level)/n.
        """
        error = (1 - level) / len(self.estimates)
        return (
            min(estimate.interval(level)[0] for estimate in self.estimates),
            min(estimate.interval(1 - error)[1] for estimate in self.estimates),
        )

    def _p_above(self, bound: float) -> float:
        return max(estimate.p_above(bound) for estimate in self.estimates)

    def _p_below(self, bound: float) -> float:
        return min(1.0, len(self.estimates) * min(estimate.p_below(bound) for estimate in self.estimates))

    def p_value(self) -> float:
        """1 − the highest level at which the verdict is decisive, in [0,1]; 1 below the minimum of replicates."""
        if self.replicates < MINIMUM_REPLICATES:
            return 1.0
        if self.rule == "non-inferiority":
            strongest = min(self._p_above(-self.smallest), self._p_below(-self.smallest))
        else:
            inside = max(self._p_above(-self.smallest), self._p_below(self.smallest))
            strongest = min(self._p_above(self.smallest), self._p_below(-self.smallest), inside)
        return min(1.0, 2 * strongest)


def judge(evidence: Evidence, level: float = 0.95, minimum: int = MINIMUM_REPLICATES) -> Verdict:
    """The verdict on one claim by its interval at ``level``.

    Superiority: *supported* where the interval lies wholly above ``smallest``, *contradicted* where it lies wholly below
    −``smallest``, *no relevant effect* where it lies wholly between the two. Non-inferiority: *supported* wholly above
    −``smallest``, *contradicted* wholly below. Otherwise *not resolved*. An interval that touches a boundary is not beyond it.

    Args:
        evidence: the claim's estimates; with several, the interval is that of the smallest effect.
        level: level of the interval, in (0, 1).
        minimum: with fewer replicates than this, the verdict is always "not resolved".

    Raises:
        ValueError: ``level`` is not in (0, 1).
    """
    if not evidence.estimates:
        return Verdict.NOT_TESTED
    if evidence.replicates < minimum:
        return Verdict.NOT_RESOLVED
    low, high = evidence.interval(level)
    smallest = evidence.smallest
    if high < -smallest:
        return Verdict.CONTRADICTED
    if low > (-smallest if evidence.rule == "non-inferiority" else smallest):
        return Verdict.SUPPORTED
    if evidence.rule == "superiority" and low > -smallest and high < smallest:
        return Verdict.NO_RELEVANT_EFFECT
    return Verdict.NOT_RESOLVED


@dataclass(frozen=True)
class Decision:
    """The verdict on one of several claims.

    Attributes:
        p: Holm's adjusted p-value, in [0,1]: the verdict is decisive where it is at most the error. NaN if not tested.
        level: level of the intervals. NaN if not tested.
        low, high: the interval that the verdict comes from, see :meth:`Evidence.interval`. NaN if not tested.
        intervals: of each estimate, at ``level``.
    """

    verdict: Verdict
    p: float
    level: float
    low: float
    high: float
    intervals: tuple[tuple[float, float], ...]


def decide(claims: Sequence[Evidence], error: float = 0.05) -> list[Decision]:
    """The verdicts on claims that are made together, corrected by Holm's step-down procedure.

    The claims are ordered by :meth:`Evidence.p_value`. Of m claims, the k-th (from 0) is judged by its interval at the level
    1 − error/(m − k). After the first claim that is not resolved, all later ones are not resolved, and their intervals have
    that claim's level. A claim without estimates is not tested and does not count. One below the minimum of replicates counts.

    Args:
        claims: the evidence of each claim.
        error: probability of one wrong verdict or more, in (0, 1).

    Returns:
        One decision per claim, in the order of ``claims``.

    Raises:
        ValueError: ``error`` is not in (0, 1).
    """
    if not 0 < error < 1:
        raise ValueError(f"error must be in (0, 1), not {error}")
    nan = math.nan
    decisions = [Decision(Verdict.NOT_TESTED, nan, nan, nan, nan, ()) for _ in claims]
    tested = [number for number, claim in enumerate(claims) if claim.estimates]
    if not tested:
        return decisions
    # It takes seconds to import.
    from statsmodels.stats.multitest import multipletests

    found = np.array([claims[number].p_value() for number in tested])
    adjusted = multipletests(found, alpha=error, method="holm")[1]
    stopped, level = False, 1 - error
    for rank, place in enumerate(np.argsort(found, kind="stable").tolist()):
        claim = claims[tested[place]]
        if not stopped:
            level = 1 - error / (len(tested) - rank)
            verdict = judge(claim, level)
            stopped = verdict is Verdict.NOT_RESOLVED
        else:
            verdict = Verdict.NOT_RESOLVED
        low, high = claim.interval(level)
        intervals = tuple(estimate.interval(level) for estimate in claim.estimates)
        decisions[tested[place]] = Decision(verdict, float(adjusted[place]), level, low, high, intervals)
    return decisions
