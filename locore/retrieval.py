"""The shortlist: exact search by inner product of global descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np

from locore.utils import distributed
from locore.utils.progress import track

QUERIES = 1024  # at a time, so that a bar can show how far the search is
PLACES = 2**27  # similarities that are sorted, held at a time: 70 queries go over a million images once
SORTED = 2048  # a ranking that is deeper is sorted whole
ROWS = 2**17  # of the gallery at a time in float32: what is larger is searched piece by piece


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery images of each query, best first.

    Attributes:
        indices: (Q, depth) int64.
        similarities: (Q, depth) float32.
        demoted: (Q, depth) bool, images that were moved to the end of the list.
    """

    indices: np.ndarray
    similarities: np.ndarray
    demoted: np.ndarray

    def first(self, depth: int) -> Neighbours:
        """Return the first places of every list."""
        return Neighbours(self.indices[:, :depth], self.similarities[:, :depth], self.demoted[:, :depth])

    def others(self, self_index: np.ndarray | None) -> int:
        """Return the length of the lists without the query itself, whose index in the gallery is self_index (Q,)."""
        with_itself = self_index is not None and bool((self.indices == self_index[:, None]).any())
        return self.indices.shape[1] - with_itself


class Table(Protocol):
    """Rows (N, D) that are read in parts: an array, or one on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray: ...


def nearest(
    queries: Table,
    gallery: Table,
    rows: np.ndarray,
    depth: int,
    self_index: np.ndarray | None,
    demoted: list[np.ndarray] | None = None,
    given: Neighbours | None = None,
) -> Neighbours:
    """Return the neighbours of some queries, from given lists or by a search; errors as `search`.

    Args:
        queries: (Q, D) of all queries.
        gallery: (N, D).
        rows: of the queries that are searched.
        depth: number of neighbours; given lists may have fewer.
        self_index: (Q,) of all queries, see `search`.
        demoted: of the searched queries, see `search`.
        given: neighbours of all queries; None = they are searched.
    """
    own = None if self_index is None else self_index[rows]
    if given is None:
        return search(queries[rows], gallery, depth, own, demoted)
    depth = min(depth, given.others(self_index))
    return arranged(given.similarities[rows], given.indices[rows], depth, own, demoted)


def search(
    queries: np.ndarray,
    gallery: Table,
    depth: int,
    self_index: np.ndarray | None = None,
    demoted: list[np.ndarray] | None = None,
) -> Neighbours:
    """Find exact neighbours by inner product, on a GPU if faiss has one.

    Args:
        queries: (Q, D).
        gallery: (N, D), of any precision.
        depth: number of neighbours of each query.
        self_index: (Q,) each query's own index in the gallery, left out of its list; None = queries are not in it.
        demoted: of each query, gallery indices that are moved to the end of its list.

    Raises:
        ValueError: the gallery is smaller than the depth, or a descriptor is not finite.
    """
    most = len(gallery) - (self_index is not None)
    if depth > most:
        raise ValueError(
            f"A shortlist of {depth} is longer than the gallery of {most} images; lower the number of candidates."
        )
    # Deep enough that the lists are full once the query itself is out and others have moved behind.
    margin = (self_index is not None) + max((len(moved) for moved in demoted or []), default=0)
    similarities, indices = _nearest(_finite(queries), gallery, min(depth + margin, len(gallery)))
    return arranged(similarities, indices, depth, self_index, demoted)


def arranged(
    similarities: np.ndarray,
    indices: np.ndarray,
    depth: int,
    self_index: np.ndarray | None = None,
    demoted: list[np.ndarray] | None = None,
) -> Neighbours:
    """Return the first `depth` places of lists (Q, topk) after demoted images have moved to the end; see `search`."""
    marked = np.zeros(indices.shape, dtype=bool)
    for row, moved in enumerate(demoted or []):
        marked[row] = np.isin(indices[row], moved)
    last = marked.astype(np.int8)
    if self_index is not None:
        last[indices == self_index[:, None]] = 2
    order = np.argsort(last, axis=1, kind="stable")[:, :depth]
    return Neighbours(*(np.take_along_axis(x, order, axis=1) for x in (indices, similarities, marked)))


def _nearest(queries: np.ndarray, gallery: Table, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and indices (Q, depth), best first."""
    if depth > SORTED:
        return _sorted(queries, gallery, depth)
    rows, asked = range(0, len(gallery), ROWS), range(0, len(queries), QUERIES)
    if len(asked) < distributed.count():
        rows = distributed.share(rows)
    else:
        asked = distributed.share(asked)
    steps = [(row, query) for row in rows for query in asked]
    nearest: dict[int, list[np.ndarray]] = {}
    indexed = None
    for row, query in track(steps, "searching"):
        if row != indexed:
            index, indexed = _index(_finite(gallery[row : row + ROWS])), row
        found, places = index.search(queries[query : query + QUERIES], min(depth, index.ntotal))
        nearest[query] = _best([nearest.get(query), [found, places + row]], depth)
    parts = distributed.gathered(nearest)
    every = [_best([part.get(query) for part in parts], depth) for query in range(0, len(queries), QUERIES)]
    similarities, indices = (np.concatenate(each) for each in zip(*every, strict=True))
    return similarities, indices


def _best(lists: list[list[np.ndarray] | None], depth: int) -> list[np.ndarray]:
    """Merge lists of the same queries into one, (Q, depth) at most; the earlier list wins ties."""
    found, places = (np.concatenate(each, axis=1) for each in zip(*filter(None, lists), strict=True))
    best = np.argsort(-found, axis=1, kind="stable")[:, :depth]
    return [np.take_along_axis(x, best, axis=1) for x in (found, places)]


def _sorted(queries: np.ndarray, gallery: Table, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and indices by sorting all similarities (Q, N): very deep lists are too long for faiss's
    heaps.
    """
    similarities, indices = (np.empty((len(queries), depth), dtype=kind) for kind in (np.float32, np.int64))
    at_once = max(1, PLACES // len(gallery))
    for start in range(0, len(queries), at_once):
        asked = queries[start : start + at_once]
        found = np.empty((len(asked), len(gallery)), dtype=np.float32)
        for row in track(range(0, len(gallery), ROWS), "searching"):
            found[:, row : row + ROWS] = asked @ _finite(gallery[row : row + ROWS]).T
        for query, own in enumerate(found, start):
            indices[query] = _first(own, depth)
            similarities[query] = own[indices[query]]
    return similarities, indices


def _first(similarities: np.ndarray, depth: int) -> np.ndarray:
    """Return the indices (depth,) of the largest of similarities (N,), in order; the earlier index wins ties.

    Similarity and index go into one whole number each, which numpy sorts many times as fast as indices by similarities.
    """
    bits = (similarities + np.float32(0)).view(np.int32)  # + 0: -0.0 is 0.0
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # whole numbers in the order of the similarities
    keys = (-ascending.astype(np.int64) << 32) | np.arange(len(bits))
    if depth < len(keys):
        keys = np.partition(keys, depth - 1)[:depth]
    keys.sort()
    return keys & 0xFFFFFFFF


def _index(rows: np.ndarray) -> faiss.Index:
    """Build an exact index, on a GPU if faiss has one."""
    index: faiss.Index = faiss.IndexFlatIP(rows.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        own = distributed.device().index or 0
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), own, index)
    index.add(rows)
    return index


def _finite(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("A global descriptor is not finite; delete the descriptor file and extract again.")
    return rows
