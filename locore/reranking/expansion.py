"""Query expansion and database-side augmentation, by global descriptors of the shortlist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.reranking.reranker import (
    Ranking,
    Shortlist,
    among_candidates,
    at_least,
    only_present,
    rerankers,
)


@rerankers.register("query_expansion")
@dataclass(frozen=True)
class QueryExpansion:
    """The query and its nearest candidates in one: αQE (Radenović et al. 2019, section 5.3), with α = 0 the average
    (Chum et al. 2007).

    Attributes:
        neighbours: how many. alpha: power of their similarities, which are their weights.
    """

    neighbours: int = 10
    alpha: float = 3.0

    def __post_init__(self):
        at_least(self, neighbours=1, alpha=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Candidates by their similarity to the expanded query."""
        candidates = shortlist.candidates.global_
        similarities = torch.einsum("bd,bkd->bk", shortlist.query.global_, candidates)
        spread = _weights(only_present(similarities, shortlist.present), self.neighbours, self.alpha)
        expanded = F.normalize(shortlist.query.global_ + torch.einsum("bk,bkd->bd", spread, candidates), dim=-1)
        return Ranking.by(only_present(torch.einsum("bd,bkd->bk", expanded, candidates), shortlist.present))


@rerankers.register("database_augmentation")
@dataclass(frozen=True)
class DatabaseAugmentation:
    """Each candidate and its nearest others on the list in one (Turcot and Lowe 2009; Arandjelović and Zisserman 2012).

    Attributes:
        neighbours: how many, itself not counted. alpha: power of their similarities, which are their weights.
    """

    neighbours: int = 10
    alpha: float = 3.0

    def __post_init__(self):
        at_least(self, neighbours=1, alpha=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Augmented candidates by their similarity to the query."""
        candidates, alike = shortlist.candidates.global_, among_candidates(shortlist)
        augmented = F.normalize(_weights(alike, self.neighbours + 1, self.alpha) @ candidates, dim=-1)
        return Ranking.by(
            only_present(torch.einsum("bd,bkd->bk", shortlist.query.global_, augmented), shortlist.present)
        )


def _weights(similarities: Tensor, count: int, alpha: float) -> Tensor:
    """(..., K) -> the power of the `count` highest, where they are candidates that are there; 0 for all others."""
    near, places = similarities.topk(min(count, similarities.shape[-1]), dim=-1)
    weights = near.clamp(min=0) ** alpha * (near != -torch.inf)
    return torch.zeros_like(similarities).scatter(-1, places, weights)
