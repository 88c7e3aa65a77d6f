"""Order robustness: the same list in several random orders ought to be re-ranked alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from locore.evaluation.evaluate import Search, reordered
from locore.progress import track
from locore.reranking.reranker import Reranker, Shortlist


@dataclass(frozen=True)
class Spread:
    """What the order in which candidates are read changes, of each query (Q,).

    Attributes:
        scores: standard deviation of a candidate's score over orders, in the mean over candidates, in standard
            deviations of the list's scores; None where the re-ranker gives none.
        metric: standard deviation of the query's metric over orders. shuffled: its mean over orders. searched: with the
            candidates in the order of the search.
    """

    scores: np.ndarray | None
    metric: np.ndarray
    shuffled: np.ndarray
    searched: np.ndarray


def order_spread(
    reranker: Reranker, searched: Search, candidates: int, queries: np.ndarray, device: torch.device, orders: int = 20
) -> Spread:
    """Re-rank the heads of some lists as they were searched and in random orders.

    Args:
        candidates: K. queries: (Q,) which of the search's rows. orders: how many are drawn, for each query anew.
    """
    generator = torch.Generator().manual_seed(0)
    head = torch.from_numpy(searched.neighbours.first(candidates).indices)
    scores, metrics = [], []
    for query in track(queries, "re-ranking in orders"):
        drawn = [torch.randperm(candidates, generator=generator) for _ in range(orders)]
        order = torch.stack([torch.arange(candidates), *drawn])
        rows = torch.full((len(order),), int(searched.rows[query]))
        ranking = reranker.rerank(
            Shortlist.gather(searched.queries, rows, searched.gallery, head[query][order], device)
        )
        places = order.gather(1, ranking.order.cpu())
        right, junk = (reordered(np.tile(x[query], (len(order), 1)), places) for x in (searched.right, searched.junk))
        positives = np.repeat(searched.positives[query], len(order))
        metrics.append(searched.measures(right, junk, positives)[searched.measures.main])
        if ranking.scores is not None:
            given = ranking.scores.cpu()
            spread = torch.empty_like(given).scatter(1, order, given)[1:]
            scores.append(float(spread.std(dim=0).mean() / spread.std(dim=1).mean().clamp(min=1e-12)))
    found = np.array(metrics)
    return Spread(
        np.array(scores) if scores else None, found[:, 1:].std(axis=1, ddof=1), found[:, 1:].mean(axis=1), found[:, 0]
    )
