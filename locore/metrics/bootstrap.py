"""Intervals of a mean over queries, resampled by class: queries of one class are not independent."""

from __future__ import annotations

import numpy as np


def interval(
    values: np.ndarray, groups: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Q,), whole `groups` (Q,) drawn with replacement."""
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """The mean of `values` (Q,) with the ends of its 95 % interval: "mean", "low" and "high"."""
    low, high = interval(values, groups)
    return {"mean": float(values.mean()), "low": low, "high": high}
