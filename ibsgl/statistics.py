"""Uncertainty over test images: percentile bootstrap intervals that resample images, not rows.

One image gives a row for every class in it, and those rows are not independent; resampling images keeps them together.
The intervals say nothing about training: that variance needs several training runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from ibsgl.randomness import derive_seed

_CHUNK = 1 << 17  # elements of the resampling matrix held at once: 1 MiB, which a cache holds


def _multiplicities(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, (k, clusters) float64 for k resamples at a time, ``resamples`` in all."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    step = max(1, _CHUNK // clusters)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _sums(values: np.ndarray, codes: np.ndarray, clusters: int) -> np.ndarray:
    """(N,K) summed within clusters: (K, clusters)."""
    return np.stack([np.bincount(codes, weights=column, minlength=clusters) for column in values.T])


def bootstrap_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    seed: int,
    resamples: int = 10000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean of ``values``, resampling clusters.

    Args:
        values: (N,), or (N,K) for K quantities known for the same rows, which are then resampled together.
        clusters: (N,) which image each row belongs to.
        seed: the root seed; the same seed and clusters give the same resamples, hence comparable intervals.
        resamples: how many times as many clusters as there are are drawn with replacement.
        level: coverage, in (0, 1).
        groups: (N,) class of each row: the statistic is then the mean of the groups' means, over the groups that a
            resample contains.

    Returns:
        ``(low, high)``: floats, or arrays (K,). A single cluster gives the mean twice.

    Raises:
        ValueError: NaN or infinite values, no rows, or lengths that differ.
    """
    data, names = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    table = data[:, None] if data.ndim == 1 else data
    kinds = np.zeros(len(names), dtype=np.int64) if groups is None else np.asarray(groups)
    if table.ndim != 2 or not len(table) == len(names) == len(kinds):
        raise ValueError(
            f"{len(data)} values, {len(names)} clusters and {len(kinds)} groups: one of each per row is needed"
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
            # Not a BLAS product, whose last digits depend on the number of threads, and a column at a time, so that
            # they do not depend on which other columns there are either.
            size, *totals = (np.einsum("rm,m->r", weights, column) for column in (counts, *sums))
            with np.errstate(invalid="ignore"):
                per_group.append(np.stack(totals, axis=1) / size[:, None])
        means.append(np.nanmean(per_group, axis=0))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (float(low[0]), float(high[0])) if data.ndim == 1 else (low, high)


def paired_interval(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, seed: int, resamples: int = 10000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(a − b) for ``a`` and ``b`` (N,) measured on the same rows; see :func:`bootstrap_interval`."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must have one shape, not {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, clusters, seed=seed, resamples=resamples, level=level)
