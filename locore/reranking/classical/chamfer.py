"""Chamfer similarity of local descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from locore.reranking.classical._matching import chamfer
from locore.reranking.reranker import Ranking, Shortlist, only_present, rerankers


@rerankers.register("chamfer")
@dataclass(frozen=True)
class Chamfer:
    """Mean over the query's locals of the similarity to the nearest of the candidate's."""

    search_weight: ClassVar[float] = 0.7

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by chamfer similarity."""
        return Ranking.by(only_present(chamfer(shortlist.query, shortlist.candidates), shortlist.present))
