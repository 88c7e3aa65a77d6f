"""Re-rank only where the search is not sure of its first candidate.

The idea is that of "To match or not to match" (arXiv 2504.06116), here for whole lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from locore.reranking.reranker import Ranking, Reranker, Shortlist

THRESHOLDS = torch.linspace(0, 1, 21)  # quantiles of the first candidate's similarity that are tried


@dataclass(frozen=True)
class Gate:
    """A list is re-ranked if its first candidate matches the query weakly.

    Attributes:
        threshold: lists whose first candidate has a lower similarity of the search are re-ranked.
    """

    threshold: float

    def opens(self, similarities: Tensor) -> Tensor:
        """Return (Q,) bool, which lists are re-ranked, given the similarities (Q, K) of the search."""
        return similarities[:, 0] < self.threshold

    def order(self, similarities: Tensor, order: Tensor) -> Tensor:
        """Return the re-ranked order (Q, K), or that of the search where the list stays as it is."""
        searched = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.where(self.opens(similarities)[:, None], order, searched)

    @classmethod
    def fit(cls, similarities: Tensor, order: Tensor, quality: Callable[[Tensor], float]) -> Gate:
        """Choose the best threshold on a validation set; of equally good ones that which re-ranks fewest lists.

        Args:
            similarities: (Q, K).
            order: (Q, K) as re-ranked.
            quality: of an order (Q, K), higher is better.
        """
        tried = [cls(float(value)) for value in similarities[:, 0].double().quantile(THRESHOLDS.double())]
        tried.append(cls(float(similarities[:, 0].max()) + 1))  # above all of them
        return max(tried, key=lambda gate: quality(gate.order(similarities, order)))


@dataclass(frozen=True)
class Gated:
    """A re-ranker that reads only the lists that a gate opens.

    Attributes:
        reranker: of these lists.
        gate: says which.
    """

    reranker: Reranker
    gate: Gate

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder the open lists, without scores: those of a list that is not read are not known."""
        opens = self.gate.opens(shortlist.similarities)
        order = torch.arange(shortlist.similarities.shape[1], device=opens.device).repeat(len(opens), 1)
        if opens.any():
            order[opens] = self.reranker.rerank(shortlist.lists(opens)).order
        return Ranking(order, None)
