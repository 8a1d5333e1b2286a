"""Uncertainty over test images: percentile bootstrap intervals that resample images, not rows.

An image has one row for every class that it shows. Those rows are not independent, and resampling images keeps them together.
The intervals do not cover the variance of training, which only several training runs show.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from ibsgl.randomness import derive_seed

# Elements of the resampling matrix in memory at once: 1 MiB, which fits into a processor's cache.
_CHUNK = 1 << 17


def _multiplicities(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn: (k, clusters) float64 for k resamples at a time, ``resamples`` in all."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    step = max(1, _CHUNK // clusters)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _sums(values: np.ndarray, codes: np.ndarray, clusters: int) -> np.ndarray:
    """Sums of ``values`` (N,K) within clusters: (K, clusters)."""
    return np.stack([np.bincount(codes, weights=column, minlength=clusters) for column in values.T])


def bootstrap_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    seed: int,
    resamples: int = 10000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (N,): ``(low, high)``; see :func:`bootstrap_intervals`."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    low, high = bootstrap_intervals(column, clusters, seed=seed, resamples=resamples, level=level, groups=groups)
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    seed: int,
    resamples: int = 10000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of the means of several quantities. Clusters are resampled.

    Args:
        values: (N,K), K quantities of the same rows. They are resampled together.
        clusters: (N,) the image that each row belongs to.
        seed: the root seed. The same seed and clusters give the same resamples, so intervals are comparable.
        resamples: number of resamples. Each draws with replacement as many clusters as there are.
        level: coverage, in (0, 1).
        groups: (N,) class of each row. With it the statistic is the mean of the groups' means, over the groups that a
            resample contains.

    Returns:
        ``(low, high)``, each (K,). With a single cluster both are the mean.

    Raises:
        ValueError: there are NaN or infinite values, there are no rows, or the lengths differ.
    """
    table, names = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    kinds = np.zeros(len(names), dtype=np.int64) if groups is None else np.asarray(groups)
    if table.ndim != 2 or not len(table) == len(names) == len(kinds):
        raise ValueError(
            f"{len(table)} values, {len(names)} clusters and {len(kinds)} groups: one of each per row is needed"
        )
    if not len(table):
        raise ValueError("there are no values to bootstrap")
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of the values to bootstrap are NaN or infinite")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level in (0, 1), not {resamples} and {level}")

    unique, codes = np.unique(names, return_inverse=True)
    parts = []
    for kind in np.unique(kinds):
        rows = kinds == kind
        counts = np.bincount(codes[rows], minlength=len(unique)).astype(np.float64)
        present = np.flatnonzero(counts)
        sums = np.ascontiguousarray(_sums(table[rows], codes[rows], len(unique))[:, present])
        parts.append((present, sums, counts[present]))

    means = []
    for drawn in _multiplicities(len(unique), resamples, seed):
        per_group = []
        for present, sums, counts in parts:
            weights = np.ascontiguousarray(drawn[:, present])
            # The last digits of a BLAS product depend on the number of threads. One column at a time, they do not depend on
            # the other columns either.
            size, *totals = (np.einsum("rm,m->r", weights, column) for column in (counts, *sums))
            with np.errstate(invalid="ignore"):
                per_group.append(np.stack(totals, axis=1) / size[:, None])
        means.append(np.nanmean(per_group, axis=0))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def paired_interval(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, seed: int, resamples: int = 10000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(a − b) for ``a`` and ``b`` (N,) that were measured on the same rows; see :func:`bootstrap_intervals`."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must have the same shape, not {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, clusters, seed=seed, resamples=resamples, level=level)
