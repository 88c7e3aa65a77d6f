"""Database-side augmentation, by global descriptors of the shortlist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from locore.reranking.classical._neighbours import neighbour_weights
from locore.reranking.reranker import Ranking, Shortlist, among_candidates, at_least, only_present, rerankers


@rerankers.register("database_augmentation")
@dataclass(frozen=True)
class DatabaseAugmentation:
    """Each candidate is averaged with its nearest others on the list (Turcot and Lowe 2009; Arandjelović and Zisserman
    2012).

    Attributes:
        neighbours: number of others.
        alpha: power of their similarities, which are their weights.
    """

    search_weight: ClassVar[float] = 0.4

    neighbours: int = 10
    alpha: float = 3.0

    def __post_init__(self):
        at_least(self, neighbours=1, alpha=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort augmented candidates by their similarity to the query."""
        candidates, alike = shortlist.candidates.global_descriptor, among_candidates(shortlist)
        augmented = F.normalize(neighbour_weights(alike, self.neighbours + 1, self.alpha) @ candidates, dim=-1)
        return Ranking.by(
            only_present(torch.einsum("bd,bkd->bk", shortlist.query.global_descriptor, augmented), shortlist.present)
        )
