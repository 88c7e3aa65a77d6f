"""Re-rankers: a shortlist in, a ranking out."""

from locore.reranking.ensemble import Ensemble, StandardisedEnsemble, WithSearch
from locore.reranking.gate import Gate, Gated
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.reranker import Ranking, Reranker, Shortlist
from locore.reranking.windows import Windows

__all__ = [
    "Ensemble",
    "Gate",
    "Gated",
    "ListwiseReranker",
    "Ranking",
    "Reranker",
    "Shortlist",
    "StandardisedEnsemble",
    "Windows",
    "WithSearch",
]
