"""k-reciprocal re-ranking (Zhong et al. 2017), on the query and its shortlist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from locore.reranking.reranker import Ranking, Shortlist, at_least, only_present, rerankers


@rerankers.register("k_reciprocal")
@dataclass(frozen=True)
class KReciprocal:
    """Jaccard distance of expanded k-reciprocal neighbours, averaged with the distance of the descriptors.

    Attributes:
        k1: number of neighbours that have to be mutual.
        k2: number of neighbours that a neighbourhood is averaged over.
        distance_weight: λ, weight of the original distance.
    """

    search_weight: ClassVar[float] = 0.9

    k1: int = 20
    k2: int = 6
    distance_weight: float = 0.3

    def __post_init__(self):
        at_least(self, k1=1, k2=1, distance_weight=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by the final distance, the nearest first."""
        scores = torch.stack([self._one(shortlist, row) for row in range(len(shortlist.similarities))])
        return Ranking.by(only_present(scores, shortlist.present))

    def _one(self, shortlist: Shortlist, row: int) -> Tensor:
        """Return the scores (K,) of one list."""
        candidates = shortlist.candidates.global_descriptor[row]
        present = (
            torch.ones(len(candidates), dtype=torch.bool, device=candidates.device)
            if shortlist.present is None
            else shortlist.present[row]
        )
        rows = torch.cat([shortlist.query.global_descriptor[row : row + 1], candidates[present]]).double()
        # Squared, of unit vectors; in half precision equal ones may be a little longer, which is no distance below 0.
        distance = (2 - 2 * rows @ rows.T).clamp(min=0)
        distance = distance / distance.amax(dim=1, keepdim=True).clamp(min=1e-12)
        ranks = distance.argsort(dim=1, stable=True)
        mutual, half = (self._mutual(ranks, k) for k in (self.k1, round(self.k1 / 2)))
        # Neighbours whose own, closer mutual neighbours are mostly among them bring these in (eq. 4).
        common = mutual.double() @ half.T.double()
        joins = mutual & (common > 2 / 3 * half.sum(dim=1))
        expanded = mutual | (joins.double() @ half.double() > 0)
        vectors = torch.where(expanded, torch.exp(-distance), 0.0)
        vectors = vectors / vectors.sum(dim=1, keepdim=True).clamp(min=1e-12)
        if self.k2 > 1:
            vectors = vectors[ranks[:, : self.k2]].mean(dim=1)
        shared = torch.minimum(vectors[0], vectors).sum(dim=1)
        jaccard = 1 - shared / (2 - shared)
        final = (1 - self.distance_weight) * jaccard + self.distance_weight * distance[0]
        scores = torch.zeros(len(candidates), dtype=final.dtype, device=final.device)
        scores[present] = -final[1:]
        return scores

    @staticmethod
    def _mutual(ranks: Tensor, k: int) -> Tensor:
        """Return (n, n) bool, True if j is among the k nearest of i and i among those of j; each is its own nearest."""
        listed = torch.zeros(ranks.shape, dtype=torch.bool, device=ranks.device)
        listed.scatter_(1, ranks[:, : k + 1], True)
        return listed & listed.T
