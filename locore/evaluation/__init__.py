"""Metrics, intervals and protocols."""

from locore.evaluation.bootstrap import interval
from locore.evaluation.embeddings import evaluate_embeddings
from locore.evaluation.evaluate import NothingToAsk, Reranked, Search, reordered, rerank_protocols, summary
from locore.evaluation.measures import MapAt100, Measures, MetricLearning, Revisited
from locore.evaluation.metrics import average_precision, map_at, map_at_r, precision_at, r_precision, recall_at

__all__ = [
    "MapAt100",
    "Measures",
    "MetricLearning",
    "NothingToAsk",
    "Reranked",
    "Revisited",
    "Search",
    "average_precision",
    "evaluate_embeddings",
    "interval",
    "map_at",
    "map_at_r",
    "precision_at",
    "r_precision",
    "recall_at",
    "reordered",
    "rerank_protocols",
    "summary",
]
