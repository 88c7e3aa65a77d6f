"""Re-rankers one behind the other, each on the head of what the one before it left (supplement, B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from locore.reranking.reranker import Ranking, Reranker, Shortlist


@dataclass(frozen=True)
class Cascade:
    """Attributes:
    stages: re-rankers, each with how many of the list it reorders; None = all.
    """

    stages: Sequence[tuple[Reranker, int | None]]

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """An order; scores of different stages cannot be compared, so there are none."""
        batch, count = shortlist.similarities.shape
        order = torch.arange(count, device=shortlist.similarities.device).repeat(batch, 1)
        for reranker, cut in self.stages:
            head = order[:, :cut]
            order[:, :cut] = head.gather(1, reranker.rerank(shortlist.take(head)).order)
        return Ranking(order, None)
