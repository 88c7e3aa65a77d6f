"""Query expansion, by global descriptors of the shortlist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from locore.reranking.classical._neighbours import neighbour_weights
from locore.reranking.reranker import Ranking, Shortlist, at_least, only_present, rerankers


@rerankers.register("query_expansion")
@dataclass(frozen=True)
class QueryExpansion:
    """The query is averaged with its nearest candidates: αQE (Radenović et al. 2019, section 5.3); α = 0 is the plain
    average (Chum et al. 2007).

    Attributes:
        neighbours: number of candidates.
        alpha: power of their similarities, which are their weights.
    """

    search_weight: ClassVar[float] = 0.85

    neighbours: int = 10
    alpha: float = 3.0

    def __post_init__(self):
        at_least(self, neighbours=1, alpha=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by their similarity to the expanded query."""
        candidates = shortlist.candidates.global_descriptor
        similarities = torch.einsum("bd,bkd->bk", shortlist.query.global_descriptor, candidates)
        spread = neighbour_weights(only_present(similarities, shortlist.present), self.neighbours, self.alpha)
        expanded = F.normalize(
            shortlist.query.global_descriptor + torch.einsum("bk,bkd->bd", spread, candidates), dim=-1
        )
        return Ranking.by(only_present(torch.einsum("bd,bkd->bk", expanded, candidates), shortlist.present))
