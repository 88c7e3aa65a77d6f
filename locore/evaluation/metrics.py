"""Retrieval metrics of each query, from the relevance of its ranking (reference: Musgrave et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relevance(ranking: np.ndarray, positive: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, depth) gallery indices and each query's right ones -> (Q, depth) bool."""
    return np.stack([np.isin(row, right) for row, right in zip(ranking, positive, strict=True)])


def recall_at(right: np.ndarray, k: int) -> np.ndarray:
    """R@k: 1 if any of the first k is right. (Q, depth) -> (Q,)."""
    return np.any(right[:, :k], axis=1).astype(np.float64)


def map_at_r(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """mAP@R: (1/R) Σ_{i≤R} P(i)·rel(i) with R = `positives` (Q,). Needs depth >= max R. -> (Q,)."""
    within = right & (np.arange(right.shape[1]) < positives[:, None])
    precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
    return np.sum(precision * within, axis=1) / positives


def r_precision(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The share of the first R that is right; arguments as `map_at_r`."""
    return (right & (np.arange(right.shape[1]) < positives[:, None])).sum(axis=1) / positives


def all_metrics(right: np.ndarray, positives: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric of every query, by name; R@k in the order of `ks`."""
    return {
        **{f"R@{k}": recall_at(right, k) for k in ks},
        "mAP@R": map_at_r(right, positives),
        "R-precision": r_precision(right, positives),
    }
