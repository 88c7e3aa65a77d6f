"""Metrics, intervals and protocols."""

from locore.evaluation.bootstrap import interval
from locore.evaluation.embeddings import evaluate_embeddings
from locore.evaluation.evaluate import Reranked, Search, summary
from locore.evaluation.metrics import all_metrics, map_at_r, r_precision, recall_at

__all__ = [
    "Reranked",
    "Search",
    "all_metrics",
    "evaluate_embeddings",
    "interval",
    "map_at_r",
    "r_precision",
    "recall_at",
    "summary",
]
