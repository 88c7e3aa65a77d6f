"""Intervals of means over queries by a bootstrap over classes, whose queries are not independent, and over seeds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def interval(
    values: np.ndarray,
    groups: np.ndarray,
    minus: np.ndarray | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, or of a difference of two.

    Several runs are a second level: their seeds are drawn too, those of both sides apart. The deviations of S seeds
    from their mean are widened by √(S / (S − 1)), since so few of them lie too near to it.

    Args:
        values: (Q,), or (S, Q) of runs with several seeds.
        groups: (Q,) classes, which are drawn whole, with replacement.
        minus: (Q,) or (S', Q), what is subtracted, of the same queries; None = nothing.
        level: share of the draws within the interval.
        draws: number of draws.
        seed: of the draws.

    Returns:
        The lower and the upper end.
    """
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group)
    drawn = _draws(len(counts), draws, seed)
    total = _sums(values, group, drawn, seed + 1)
    if minus is not None:
        total = total - _sums(minus, group, drawn, seed + 2)
    low, high = np.quantile(total / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sums(values: np.ndarray, group: np.ndarray, drawn: np.ndarray, seed: int) -> np.ndarray:
    """Return (draws,) sums over the drawn classes of the mean over drawn runs."""
    sums = np.stack([np.bincount(group, run) for run in np.atleast_2d(values)])
    runs, mean = len(sums), sums.mean(0)
    if runs == 1:
        return drawn @ mean
    weights = _draws(runs, len(drawn), seed) / runs
    apart = (sums - mean) * (runs / (runs - 1)) ** 0.5
    return drawn @ mean + (weights * (drawn @ apart.T)).sum(1)


@lru_cache(maxsize=6)  # a table asks for hundreds of intervals over the same classes and seeds
def _draws(groups: int, draws: int, seed: int) -> np.ndarray:
    """Return (draws, groups) how often each group is drawn."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)


def estimate(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Return "mean", "low" and "high": the mean of values (Q,) and the ends of its 95 % interval."""
    low, high = interval(values, groups)
    return {"mean": float(values.mean()), "low": low, "high": high}
