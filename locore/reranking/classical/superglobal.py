"""SuperGlobal's re-ranking (Shao et al. 2023, section 3.3): query and candidates refined by their neighbours on the
list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from locore.reranking.reranker import Ranking, Shortlist, among_candidates, at_least, only_present, rerankers


@rerankers.register("superglobal")
@dataclass(frozen=True)
class SuperGlobal:
    """SG-Rerank, by global descriptors alone.

    Attributes:
        neighbours: K, number of neighbours of a candidate, itself not counted.
        beta: weight of a neighbour.
    """

    search_weight: ClassVar[float] = 0.95

    neighbours: int = 9
    beta: float = 0.15

    def __post_init__(self):
        at_least(self, neighbours=1, beta=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort refined candidates by their mean similarity to the refined query and to the original one."""
        candidates, alike = shortlist.candidates.global_descriptor, among_candidates(shortlist)
        count = min(self.neighbours + 1, alike.shape[1])
        near, places = alike.topk(count, dim=2)
        weights = (self.beta * near).masked_fill(near == -torch.inf, 0.0)
        weights[:, :, 0] = 1.0  # itself
        spread = torch.zeros_like(alike).scatter(2, places, weights)
        refined = spread @ candidates / spread.sum(dim=2, keepdim=True)
        first = torch.einsum("bd,bkd->bk", shortlist.query.global_descriptor, refined)
        nearest, best = only_present(first, shortlist.present).topk(count, dim=1)
        rows = torch.arange(len(best), device=best.device)[:, None]
        peak = refined[rows, best].masked_fill((nearest == -torch.inf)[:, :, None], -torch.inf).amax(dim=1)
        return Ranking.by(only_present((first + torch.einsum("bd,bkd->bk", peak, refined)) / 2, shortlist.present))
