"""Intervals of a mean over queries by a bootstrap over classes: queries of one class are not independent."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def interval(
    values: np.ndarray, groups: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean.

    Args:
        values: (Q,).
        groups: (Q,) classes, which are drawn whole, with replacement.
        level: share of the draws within the interval.
        draws: number of draws.
        seed: of the draws.

    Returns:
        The lower and the upper end.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = _draws(len(sums), draws, seed)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)  # a table asks for hundreds of intervals over the same classes
def _draws(groups: int, draws: int, seed: int) -> np.ndarray:
    """Return (draws, groups) how often each group is drawn."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)


def estimate(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Return "mean", "low" and "high": the mean of values (Q,) and the ends of its 95 % interval."""
    low, high = interval(values, groups)
    return {"mean": float(values.mean()), "low": low, "high": high}
