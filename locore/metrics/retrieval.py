"""Retrieval metrics of each query, from the relevance of its ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relevance(ranking: np.ndarray, images: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, depth) gallery indices and for each query some images -> (Q, depth) bool, which are these."""
    return np.stack([np.isin(row, wanted) for row, wanted in zip(ranking, images, strict=True)])


def recall_at(right: np.ndarray, k: int) -> np.ndarray:
    """R@k: 1 if any of the first k is right. (Q, depth) -> (Q,)."""
    return np.any(right[:, :k], axis=1).astype(np.float64)


def map_at_r(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """mAP@R: (1/R) Σ_{i≤R} P(i)·rel(i), R = `positives` (Q,) (Musgrave et al. 2020). Needs depth >= max R. -> (Q,)."""
    within = right & (np.arange(right.shape[1]) < positives[:, None])
    return np.sum(_precision(right) * within, axis=1) / positives


def r_precision(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The share of the first R that is right; arguments as `map_at_r`."""
    return (right & (np.arange(right.shape[1]) < positives[:, None])).sum(axis=1) / positives


def map_at(right: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """mAP@k: Σ_{i≤k} P(i)·rel(i) over min(positives, k), as for GLDv2 (Weyand et al. 2020, section 4.2). -> (Q,)."""
    head = right[:, :k]
    return np.sum(_precision(head) * head, axis=1) / np.minimum(positives, k)


def average_precision(places: np.ndarray, positives: int) -> float:
    """The trapezoidal average precision of revisitop (Philbin et al. 2007).

    Args:
        places: (R,) ascending, from 0, where the right images stand.
        positives: how many there are to be found.
    """
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    return float(np.sum(before + (found + 1) / (places + 1)) / (2 * positives))


def precision_at(places: np.ndarray, k: int) -> float:
    """mP@k of revisitop: precision among the first k, or among as many as reach the last right image; places from 0.

    0 where a list that is shorter than the gallery has none.
    """
    if not len(places):
        return 0.0
    cut = min(int(places.max()) + 1, k)
    return float(np.sum(places < cut) / cut)


def _precision(right: np.ndarray) -> np.ndarray:
    """P(i) at every place."""
    return np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
