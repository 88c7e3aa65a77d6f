"""Local descriptors matched without training: each of the query's with the most similar of a candidate's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Shortlist


def local_similarities(query: Descriptors, candidates: Descriptors) -> Tensor:
    """(B, K, L, L) cosine of each of the query's locals and each of a candidate's; -1 where either is missing."""
    ours, theirs = (F.normalize(d.local, dim=-1) for d in (query, candidates))
    similarities = torch.einsum("bld,bkmd->bklm", ours, theirs)
    real = query.mask[:, None, :, None] & candidates.mask[:, :, None, :]
    return similarities.masked_fill(~real, -1.0)


def mutual(similarities: Tensor) -> Tensor:
    """(B, K, L, L) bool: pairs that are each other's most similar."""
    best = similarities == similarities.amax(dim=3, keepdim=True)
    return best & (similarities == similarities.amax(dim=2, keepdim=True)) & (similarities > -1)


def chamfer(query: Descriptors, candidates: Descriptors) -> Tensor:
    """(B, K): mean over the query's locals of the similarity to the nearest of a candidate's."""
    best = local_similarities(query, candidates).amax(dim=3)
    real = query.mask[:, None, :]
    return (best * real).sum(dim=2) / real.sum(dim=2).clamp(min=1)


def chamfer_among(shortlist: Shortlist) -> Tensor:
    """(B, K, K) chamfer similarities of candidates, in the mean of both ways; -inf to those that are not there.

    A candidate at a time, so that memory grows as K.
    """
    candidates = shortlist.candidates
    there = torch.stack([chamfer(candidates[:, one], candidates) for one in range(candidates.mask.shape[1])], dim=1)
    alike = (there + there.mT) / 2
    return alike if shortlist.present is None else alike.masked_fill(~shortlist.present[:, None], -torch.inf)
