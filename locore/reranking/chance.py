"""A random order of the list: what a re-ranker has that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

from locore.reranking.reranker import Ranking, Shortlist, only_present, rerankers


@rerankers.register("chance")
@dataclass(frozen=True)
class Chance:
    """Attributes:
    seed: of the order.
    """

    seed: int = 0

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Candidates by a number that follows from the last digits of their similarity, so that it is always theirs."""
        digits = (1e6 * shortlist.similarities.double() + self.seed).sin() * 1e4
        return Ranking.by(only_present((digits - digits.floor()).float(), shortlist.present))
