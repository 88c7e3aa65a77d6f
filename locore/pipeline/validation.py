"""The search that validates: queries of held-out training classes ask for images of the whole training set."""

from __future__ import annotations

import numpy as np
import torch

from locore.datasets import Benchmark, ImageSet
from locore.descriptors.table import Rows, SearchedTable
from locore.evaluation.search import Search

HELD_OUT = 0.1  # share of the training classes that validates, or as many classes as make one list
QUERIES = 500


def held_out(labels: np.ndarray, made_by: np.ndarray, candidates: int) -> np.ndarray:
    """Choose the training classes that validate.

    Args:
        labels: (N,) classes.
        made_by: (N,) number of the embedder that described each image; held-out classes are those of the first.
        candidates: K; at least so many images are held out.

    Returns:
        (N,) bool, True = the image is of a held-out class.
    """
    known, counts = np.unique(labels[made_by == 0], return_counts=True)
    order = np.random.default_rng(0).permutation(len(known))
    fewest = int(np.searchsorted(np.cumsum(counts[order]), candidates, side="right")) + 1
    return np.isin(labels, known[order[: max(fewest, int(len(np.unique(labels)) * HELD_OUT))]])


def validation_search(
    images: ImageSet, descriptors: SearchedTable, asking: np.ndarray, searched: np.ndarray, candidates: int
) -> tuple[Search, np.ndarray]:
    """Search some training images among others, as test images will be, and by the benchmark's own metrics.

    Args:
        images: the training images.
        descriptors: of all of them.
        asking: (N,) bool, images that may be queries; a fixed draw of them is.
        searched: (N,) bool, the gallery, queries among them.
        candidates: K.

    Returns:
        The search, and the rows of its gallery among the training images.
    """
    rows = np.flatnonzero(searched)
    gallery, table = images.subset(rows), Rows(descriptors, torch.from_numpy(rows))
    drawn = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(asking[rows]))[:QUERIES])
    queries = gallery.subset(drawn)
    answers = gallery.answers(drawn)
    benchmark = Benchmark("validation", None, queries, gallery, {"all": answers}, drawn, images.suite, validation=True)
    return Search.build(benchmark, Rows(table, torch.from_numpy(drawn)), table, candidates), rows
