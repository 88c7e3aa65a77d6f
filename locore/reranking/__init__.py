"""Re-rankers: a shortlist in, a ranking out."""

from locore.reranking.ensemble import Ensemble, StandardisedEnsemble, WithSearch
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.reranker import Ranking, Reranker, Shortlist
from locore.reranking.windows import Windows

__all__ = [
    "Ensemble",
    "ListwiseReranker",
    "Ranking",
    "Reranker",
    "Shortlist",
    "StandardisedEnsemble",
    "Windows",
    "WithSearch",
]
