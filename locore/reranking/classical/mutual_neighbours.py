"""Matches of local descriptors that are each other's nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from locore.reranking.classical._matching import local_similarities, mutual
from locore.reranking.reranker import Ranking, Shortlist, only_present, rerankers


@rerankers.register("mutual_neighbours")
@dataclass(frozen=True)
class MutualNeighbours:
    """Sum of the similarities of local descriptors that are each other's nearest.

    Attributes:
        min_similarity: similarity of a match at least.
    """

    search_weight: ClassVar[float] = 0.7

    min_similarity: float = 0.0

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by the sum over their matches."""
        similarities = local_similarities(shortlist.query, shortlist.candidates)
        matched = mutual(similarities) & (similarities >= self.min_similarity)
        return Ranking.by(only_present((similarities * matched).sum(dim=(2, 3)), shortlist.present))
