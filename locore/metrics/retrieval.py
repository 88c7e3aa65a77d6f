"""Retrieval metrics of each query, from the relevance of its ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relevance(ranking: np.ndarray, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return (Q, depth) bool, which images of a ranking are among some images of each query.

    Args:
        ranking: (Q, depth) gallery indices.
        images: of each query, gallery indices.
    """
    return np.stack([np.isin(row, wanted) for row, wanted in zip(ranking, images, strict=True)])


def recall_at(right: np.ndarray, k: int) -> np.ndarray:
    """Return R@k (Q,) of rankings (Q, depth) bool: 1 if any of the first k is right."""
    return np.any(right[:, :k], axis=1).astype(np.float64)


def map_at_r(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return mAP@R (Q,): (1/R) Σ_{i≤R} P(i)·rel(i) (Musgrave et al. 2020).

    Args:
        right: (Q, depth) bool, with depth at least the largest R.
        positives: (Q,) R, the number of positives.
    """
    within = right & (np.arange(right.shape[1]) < positives[:, None])
    return np.sum(_precision(right) * within, axis=1) / positives


def r_precision(right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return (Q,) the share of right images among the first R; arguments as `map_at_r`."""
    return (right & (np.arange(right.shape[1]) < positives[:, None])).sum(axis=1) / positives


def map_at(right: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return mAP@k (Q,): Σ_{i≤k} P(i)·rel(i) over min(positives, k), as for GLDv2 (Weyand et al. 2020, section 4.2).

    Args:
        right: (Q, depth) bool.
        positives: (Q,) number of positives.
        k: depth that counts.
    """
    head = right[:, :k]
    return np.sum(_precision(head) * head, axis=1) / np.minimum(positives, k)


def landmark_metrics(
    right: np.ndarray, junk: np.ndarray, positives: np.ndarray, ks: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the trapezoidal average precision of revisitop (Philbin et al. 2007) and its mP@k, without junk.

    mP@k is the precision among the first k, or among as many as reach the last right image; 0 where there is none.

    Args:
        right: (Q, depth) bool.
        junk: (Q, depth) bool.
        positives: (Q,) number of positives in the gallery.
        ks: depths that count.

    Returns:
        The average precision (Q,), and the precision (Q,) at each depth.
    """
    queries, depth = right.shape
    # Of a list a million long only what is right and what is junk is looked at.
    flat, removed = np.flatnonzero(right & ~junk), np.flatnonzero(junk)
    rows, places = np.divmod(flat, depth)
    places -= np.searchsorted(removed, flat) - np.searchsorted(removed, rows * depth)
    found = np.arange(len(rows)) - np.searchsorted(rows, np.arange(queries))[rows]  # right images before each one
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    precision = np.bincount(rows, before + (found + 1) / (places + 1), queries) / (2 * positives)
    last = np.full(queries, -1)
    last[rows] = places  # in their order, so the last one stays
    cuts = [np.minimum(last + 1, k) for k in ks]
    at = [np.bincount(rows, places < cut[rows], queries) / np.maximum(cut, 1) for cut in cuts]
    return precision, at


def _precision(right: np.ndarray) -> np.ndarray:
    """Return the precision at every place."""
    return np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
