"""A cascade of re-rankers, each on the head of the list that the one before it left (supplement, B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from locore.reranking.reranker import Ranking, Reranker, Shortlist


@dataclass(frozen=True)
class Cascade:
    """Re-rankers in a row.

    Attributes:
        stages: re-rankers, each with the number of candidates that it reorders; None = all.
    """

    stages: Sequence[tuple[Reranker, int | None]]

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder candidates, without scores: those of different stages cannot be compared."""
        batch, count = shortlist.similarities.shape
        order = torch.arange(count, device=shortlist.similarities.device).repeat(batch, 1)
        for reranker, cut in self.stages:
            head = order[:, :cut]
            order[:, :cut] = head.gather(1, reranker.rerank(shortlist.take(head)).order)
        return Ranking(order, None)
