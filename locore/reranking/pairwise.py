"""Learned re-rankers that look at one candidate at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from locore.descriptors.store import Descriptors
from locore.reranking.reranker import Ranking, Shortlist, only_present


class PairwiseReranker(nn.Module, ABC):
    """Scores a query and a candidate; what else is on the list does not matter."""

    @abstractmethod
    def pairs(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Of N pairs, leading dimensions (N,) -> (N,) raw scores."""

    def forward(self, shortlist: Shortlist) -> Tensor:
        """-> (B, K) raw scores."""
        batch, count = shortlist.similarities.shape
        rows = torch.arange(batch, device=shortlist.similarities.device).repeat_interleave(count)
        candidates = shortlist.candidates[rows, torch.arange(count, device=rows.device).repeat(batch)]
        return self.pairs(shortlist.query[rows], candidates).view(batch, count)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Candidates by score; those not present last, with score -inf."""
        training = self.training
        self.eval()
        scores = only_present(self(shortlist).float(), shortlist.present)
        self.train(training)
        return Ranking.by(scores)
