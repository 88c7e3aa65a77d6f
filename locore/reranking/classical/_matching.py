"""Matches of local descriptors, without training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Shortlist


def local_similarities(query: Descriptors, candidates: Descriptors) -> Tensor:
    """Return (B, K, L, L) cosine similarities of the query's and a candidate's local descriptors; -1 if either is
    missing.
    """
    ours, theirs = (F.normalize(d.local, dim=-1) for d in (query, candidates))
    similarities = torch.einsum("bld,bkmd->bklm", ours, theirs)
    real = query.mask[:, None, :, None] & candidates.mask[:, :, None, :]
    return similarities.masked_fill(~real, -1.0)


def mutual(similarities: Tensor) -> Tensor:
    """Return (B, K, L, L) bool, the pairs that are each other's most similar."""
    best = similarities == similarities.amax(dim=3, keepdim=True)
    return best & (similarities == similarities.amax(dim=2, keepdim=True)) & (similarities > -1)


def chamfer(query: Descriptors, candidates: Descriptors) -> Tensor:
    """Return (B, K) the mean over the query's local descriptors of the similarity to the nearest one of a candidate."""
    best = local_similarities(query, candidates).amax(dim=3)
    real = query.mask[:, None, :]
    return (best * real).sum(dim=2) / real.sum(dim=2).clamp(min=1)


def chamfer_among(shortlist: Shortlist) -> Tensor:
    """Return (B, K, K) chamfer similarities of candidates, averaged over both directions; -inf to those not present.

    One candidate at a time, so that memory grows as K.
    """
    candidates = shortlist.candidates
    there = torch.stack([chamfer(candidates[:, one], candidates) for one in range(candidates.mask.shape[1])], dim=1)
    alike = (there + there.mT) / 2
    return alike if shortlist.present is None else alike.masked_fill(~shortlist.present[:, None], -torch.inf)
