"""What an image takes on disk for a re-ranker."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from locore.descriptors.table import LEADING
from locore.reranking.reranker import Reranker, Shortlist

TRIED = 8  # candidates of the list by which a re-ranker shows what it reads


def descriptor_bytes(
    reranker: Reranker, local_count: int, local_dim: int, global_dim: int, packed: bool = False
) -> int:
    """Return the bytes of an image's descriptors that a re-ranker needs, as `experiments.extract` writes them.

    Args:
        reranker: who reads them; without local ones if it reads none.
        local_count: local descriptors of an image.
        local_dim: width of a local descriptor, in half precision with its position, scale, mask and weight.
        global_dim: width of the global descriptor, in single precision.
        packed: local descriptors are stored as bits.
    """
    local = local_count * (2 * LEADING + (local_dim // 8 if packed else 2 * local_dim))
    if not isinstance(reranker, nn.Module):  # the learned ones all read them
        shortlist = Shortlist.random(1, TRIED, local_count, local_dim, global_dim)
        local = local if reads_locals(reranker, shortlist) else 0
    return 4 * global_dim + local


def reads_locals(reranker, shortlist) -> bool:
    """Return whether the ranking changes where half of the candidates have the query's local descriptors."""
    candidates, count = shortlist.candidates, shortlist.similarities.shape[1]
    same = {name: getattr(candidates, name).clone() for name in ("local", "position")}
    for name, values in same.items():
        values[:, count // 2 :] = getattr(shortlist.query, name)[:, None]
    others = replace(shortlist, candidates=replace(candidates, **same))
    ours, theirs = (reranker.rerank(each) for each in (shortlist, others))
    unchanged = torch.equal(ours.order, theirs.order)
    return not (unchanged and (ours.scores is None or torch.equal(ours.scores, theirs.scores)))
