"""Uncertainty of means over replicates and images, and of proportions.

All replicates are measured on the same images, so replicates and images are crossed. :func:`crossed_estimate` separates their
variances by a two-way analysis of variance. :func:`proportion_interval` is for counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates and images with its interval. The unit is that of the values.

    Attributes:
        low, high: the interval at the level that was asked for; both are the mean if nothing varies, and infinite with a single
            value.
        standard_error: of the mean; infinite with a single value.
        replicates, images: how many, R and I.
        by_replicate: the mean of each replicate over the images.
        replicate_share: share of the squared standard error that is estimated from the replicates, in [0,1].
    """

    mean: float
    low: float
    high: float
    standard_error: float
    replicates: int
    images: int
    by_replicate: tuple[float, ...]
    replicate_share: float

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval ``(low, high)`` at ``level``, in (0, 1).

        Raises:
            ValueError: ``level`` is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), not {level}")
        return _interval(self.mean, self.standard_error, self.replicate_share, self.replicates, self.images, level)

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true mean is at most ``bound``. A small value: it is above."""
        return self._p_value(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the true mean is at least ``bound``. A small value: it is below."""
        return self._p_value(bound - self.mean)

    def _p_value(self, distance: float) -> float:
        if self.standard_error == 0:
            return 0.0 if distance > 0 else 1.0
        if math.isinf(self.standard_error):
            return 1.0
        return _tail(distance / self.standard_error, self.replicate_share, self.replicates, self.images)


def _quantile(tail: float, share: float, replicates: int, images: int) -> float:
    """The value that is exceeded with the probability ``tail`` < ½: Cochran's mean of the two t quantiles."""
    quantile = 0.0
    if share > 0:
        quantile -= share * float(stdtrit(replicates - 1, tail))
    if share < 1:
        quantile -= (1 - share) * float(stdtrit(images - 1, tail))
    return quantile


def _interval(
    mean: float, standard_error: float, share: float, replicates: int, images: int, level: float
) -> tuple[float, float]:
    if standard_error == 0:
        return mean, mean
    if math.isinf(standard_error):
        return -math.inf, math.inf
    half = standard_error * _quantile((1 - level) / 2, share, replicates, images)
    return mean - half, mean + half


def _tail(value: float, share: float, replicates: int, images: int) -> float:
    """The inverse of :func:`_quantile`: the probability of more than ``value``."""
    if value < 0:
        return 1 - _tail(-value, share, replicates, images)
    if value == 0:
        return 0.5
    tails = [float(stdtr(size - 1, -value)) for size, used in ((replicates, share > 0), (images, share < 1)) if used]
    low, high = max(min(tails), 1e-300), max(*tails, 1e-300)
    while high > low * (1 + 1e-12):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        if _quantile(middle, share, replicates, images) > value:
            low = middle
        else:
            high = middle
    return high


def crossed_estimate(values: ArrayLike, level: float = 0.95) -> Estimate:
    """The mean of ``values`` and its t-interval for new replicates and new images, by a two-way analysis of variance.

    Replicates and images are random and crossed, as readers and cases in multi-reader multi-case analysis. The squared standard
    error is ``[MS_R + max(MS_I − MS_E, 0)] / (R·I)`` with the mean squares of replicates, of images and of the rest (Obuchowski
    and Rockette 1995, Hillis 2007). Its two parts have different degrees of freedom: MS_R has R − 1, and the images have I − 1.
    One t quantile with Hillis' degrees of freedom covers too little when replicates are few and vary much: 92 % instead of 95 %
    with 3 replicates, 94 % with 5. So the quantile is the mean of the t quantiles with R − 1 and I − 1 degrees of freedom,
    weighted by the parts (Cochran and Cox 1957, for the Behrens–Fisher problem). Its limits are exact, and between them it is
    conservative. ``docs/measured/verdicts.csv``, from ``benchmarks/verdict_simulation.py``, has the coverage of both.

    Args:
        values: (R,I), one row per replicate and one column per image. Paired differences, for a comparison. With a single
            replicate, the interval is for new images and these trainings only. With a single image, it is for new replicates
            and this image only.
        level: coverage, in (0, 1).

    Raises:
        ValueError: there are NaN or infinite values, there are none, they are not (R,I), or ``level`` is not in (0, 1).
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(
            f"values must have the shape (replicates, images) with one of each at least, not {table.shape}"
        )
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of the values to estimate from are NaN or infinite")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")
    replicates, images = table.shape
    # Relative to the first value, so that equal values have a variance of exactly 0.
    origin = table[0, 0]
    table = table - origin
    rows, columns, center = table.mean(1), table.mean(0), table.mean()

    of_replicates, of_images = 0.0, 0.0
    if replicates > 1:
        of_replicates = images * float(((rows - center) ** 2).sum()) / (replicates - 1)
    if images > 1:
        of_images = replicates * float(((columns - center) ** 2).sum()) / (images - 1)
    if replicates > 1 and images > 1:
        rest = float(((table - rows[:, None] - columns + center) ** 2).sum()) / ((replicates - 1) * (images - 1))
        of_images = max(of_images - rest, 0.0)

    total = of_replicates + of_images
    share = of_replicates / total if total > 0 else float(images == 1)
    standard_error = math.inf if table.size == 1 else math.sqrt(total / table.size)
    mean = float(origin + center)
    low, high = _interval(mean, standard_error, share, replicates, images, level)
    return Estimate(mean, low, high, standard_error, replicates, images, tuple((origin + rows).tolist()), share)


def proportion_interval(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval ``(low, high)`` of a proportion, in [0,1]. It is not a point when all or none of the trials succeed.

    Args:
        successes: number of trials that succeeded, from 0 to ``trials``; a mean over replicates may be fractional.
        trials: number of independent trials, at least 1; one that weights stand for may be fractional.
        level: coverage, in (0, 1).

    Raises:
        ValueError: a value is outside its range.
    """
    if not 0 <= successes <= trials or trials < 1 or not 0 < level < 1:
        raise ValueError(f"{successes} of {trials} trials at the level {level} is no proportion")
    # It takes seconds to import, and most jobs have no proportion.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, trials, alpha=1 - level, method="wilson")
    return float(low), float(high)
