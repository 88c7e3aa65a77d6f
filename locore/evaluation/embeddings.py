"""Retrieval metrics of any embeddings, in memory that does not grow with the gallery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from locore.metrics.suites import MetricLearning
from locore.retrieval import search

KS = (1, 10, 100, 1000)
PLACES = 2**24  # places of rankings held at a time


def evaluate_embeddings(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    ks: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Measure R@k, mAP@R and R-precision of each query that has a positive, ranked by cosine similarity.

    Args:
        embeddings: (Q, D), of any precision; a memory map stays on disk.
        labels: (Q,), of any type that compares; those of the gallery are of the same.
        gallery: (N, D); None = the queries themselves, each left out of its own list.
        gallery_labels: (N,), given together with the gallery.
        ks: of the recalls R@k; None = those of 1, 10, 100 and 1,000 that the gallery has images for.

    Returns:
        Of each metric the values of the queries with a positive, in the order given.

    Raises:
        ValueError: shapes do not fit, no query has a positive, or a k is larger than the gallery.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("A gallery and its labels go together; give both or neither.")
    alone = gallery is None or gallery_labels is None
    listed, listed_labels = (
        (embeddings, labels) if gallery is None or gallery_labels is None else (gallery, gallery_labels)
    )
    for what, rows, names in (("query", embeddings, labels), ("gallery", listed, listed_labels)):
        if not np.issubdtype(rows.dtype, np.number):
            raise ValueError(f"The {what} embeddings are {rows.dtype}, not numbers.")
        if rows.ndim != 2 or names.shape != (len(rows),):
            raise ValueError(
                f"The {what} embeddings have shape {rows.shape}, their labels {names.shape}; they must be "
                "(N, D) and (N,)."
            )
    if embeddings.shape[1] != listed.shape[1]:
        raise ValueError(
            f"Queries have width {embeddings.shape[1]} and the gallery {listed.shape[1]}; give embeddings of one model."
        )
    labels, listed_labels = _comparable(labels, listed_labels)
    most = len(listed) - alone
    ks = [k for k in KS if k <= most] if ks is None else ks
    if not ks or max(ks) > most:
        raise ValueError(
            f"R@{max(ks, default=1)} needs more than the {max(most, 0)} images that a query has; give smaller ks."
        )
    known, numbers = np.unique(listed_labels, return_inverse=True)
    counts = np.bincount(numbers)
    place = np.searchsorted(known, labels).clip(max=len(known) - 1)
    right_images = np.where(known[place] == labels, counts[place] - alone, 0)
    asked = np.flatnonzero(right_images > 0)
    if not len(asked):
        why = "no label occurs twice" if alone else "none of their labels occurs there"
        raise ValueError(f"No query has a positive in the gallery: {why}.")
    # Queries with as many right images go together, so that no list is deeper than its query needs.
    asked = asked[np.argsort(right_images[asked], kind="stable")]
    values: list[dict[str, np.ndarray]] = []
    for rows in _blocks(asked, np.maximum(right_images[asked], max(ks))):
        depth = int(max(right_images[rows].max(), *ks))
        neighbours = search(_Unit(embeddings)[rows], _Unit(listed), depth, rows if alone else None)
        right = numbers[neighbours.indices] == place[rows][:, None]
        values.append(MetricLearning(tuple(ks))(right, np.zeros_like(right), right_images[rows]))
    order = np.argsort(asked)
    return {name: np.concatenate([block[name] for block in values])[order] for name in values[0]}


def _comparable(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both labels as one type in which equal ones are equal.

    Raises:
        ValueError: there is none, or they do not compare.
    """
    kinds = ["iub" if each.dtype.kind in "iub" else each.dtype.kind for each in (labels, others)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"Labels are {labels.dtype} and in the gallery {others.dtype}; give both of one type.")
    if kinds[0] == "O":
        try:
            np.unique(np.concatenate([labels, others]))
        except TypeError as error:
            raise ValueError(f"Labels are objects that do not compare ({error}); give numbers or text.") from error
        return labels, others
    common = np.result_type(labels, others)
    if kinds[0] == "iub" and common.kind == "f":  # int64 and uint64, whose large numbers a float would make equal
        unsigned = labels if labels.dtype.kind == "u" else others
        if unsigned.max(initial=0) > np.iinfo(np.int64).max:
            raise ValueError(f"Labels are {labels.dtype} and in the gallery {others.dtype}; give both of one type.")
        common = np.dtype(np.int64)
    return labels.astype(common), others.astype(common)


class _Unit:
    """Rows of a table, L2-normalised in float32 when they are read."""

    def __init__(self, table: np.ndarray):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows) -> np.ndarray:
        read = np.asarray(self.table[rows], dtype=np.float32)
        norms = np.linalg.norm(read, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise ValueError(
                "An embedding is not finite, or too large; find the rows with numpy.isfinite and repair them."
            )
        return read / np.maximum(norms, 1e-12)


def _blocks(rows: np.ndarray, depths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `rows` in blocks whose rankings, each as deep as the block's last, have at most PLACES places; depths
    ascend.
    """
    start = 0
    while start < len(rows):
        held = depths[start:] * np.arange(1, len(rows) - start + 1)
        count = max(int(np.searchsorted(held, PLACES, side="right")), 1)
        yield rows[start : start + count]
        start += count
