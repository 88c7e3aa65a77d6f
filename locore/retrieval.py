"""The shortlist: exact search by inner product of global descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from locore.progress import track

CHUNK = 1024  # queries at a time, so that a bar can show how far the search is


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery images of each query, best first; junk behind all others.

    Attributes:
        indices: (Q, depth) int64. similarities: (Q, depth) float32. junk: (Q, depth) bool.
    """

    indices: np.ndarray
    similarities: np.ndarray
    junk: np.ndarray

    def first(self, depth: int) -> Neighbours:
        """The head of every list."""
        return Neighbours(self.indices[:, :depth], self.similarities[:, :depth], self.junk[:, :depth])


def search(
    queries: np.ndarray,
    gallery: np.ndarray,
    depth: int,
    self_index: np.ndarray | None = None,
    junk: list[np.ndarray] | None = None,
) -> Neighbours:
    """Exact neighbours by inner product, on a GPU where faiss has one.

    Args:
        queries: (Q, D). gallery: (N, D). depth: neighbours a query.
        self_index: (Q,) each query's own place in the gallery, left out of its list.
        junk: for each query the gallery indices that are marked and moved behind its whole list.

    Raises:
        ValueError: the gallery is smaller than the depth, or a descriptor is not finite.
    """
    most = len(gallery) - (self_index is not None)
    if depth > most:
        raise ValueError(
            f"A shortlist of {depth} is longer than the gallery of {most} images; lower the number of candidates."
        )
    queries, gallery = (np.ascontiguousarray(x, dtype=np.float32) for x in (queries, gallery))
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise ValueError("A global descriptor is not finite; delete the descriptor file and extract again.")
    index: faiss.Index = faiss.IndexFlatIP(gallery.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(gallery)
    # Deep enough that the lists are full once the query itself is out and all its junk has moved behind.
    margin = (self_index is not None) + max((len(j) for j in junk or []), default=0)
    found = [
        index.search(queries[start : start + CHUNK], min(depth + margin, len(gallery)))
        for start in track(range(0, len(queries), CHUNK), "searching")
    ]
    similarities, indices = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    marked = np.zeros(indices.shape, dtype=bool)
    if junk is not None:
        for row, ids in enumerate(junk):
            marked[row] = np.isin(indices[row], ids)
    last = marked.astype(np.int8)
    if self_index is not None:
        last[indices == self_index[:, None]] = 2
    order = np.argsort(last, axis=1, kind="stable")[:, :depth]
    return Neighbours(*(np.take_along_axis(x, order, axis=1) for x in (indices, similarities, marked)))
