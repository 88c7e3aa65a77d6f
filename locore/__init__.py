"""LOCORE: list-wise re-ranking for image retrieval.

model = locore.load("runs/mamba")
ranking = model.rerank(shortlist)
"""

from locore.checkpoints import load
from locore.descriptors import Descriptors, Extractor
from locore.reranking import Ensemble, ListwiseReranker, Ranking, Shortlist

__all__ = ["Descriptors", "Ensemble", "Extractor", "ListwiseReranker", "Ranking", "Shortlist", "load"]
