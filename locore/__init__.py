"""LOCORE: list-wise re-ranking for image retrieval.

model = locore.load("runs/mamba")
ranking = model.rerank(shortlist)
hits = locore.rerank("query.jpg", ["a.jpg", "b.jpg"], "runs/mamba")
"""

from locore.checkpoints import load, trained_on
from locore.descriptors import Descriptors, Extractor
from locore.hits import Hit, rerank
from locore.reranking import Ensemble, ListwiseReranker, Ranking, Shortlist

__all__ = [
    "Descriptors",
    "Ensemble",
    "Extractor",
    "Hit",
    "ListwiseReranker",
    "Ranking",
    "Shortlist",
    "load",
    "rerank",
    "trained_on",
]
