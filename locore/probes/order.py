"""Order robustness: the same list in several random orders should be re-ranked alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from locore.evaluation.search import Search, reordered
from locore.reranking.reranker import Reranker, Shortlist
from locore.utils.progress import track


@dataclass(frozen=True)
class Spread:
    """The effect of the order in which candidates are read, of each query (Q,).

    Attributes:
        scores: standard deviation of a candidate's score over orders, averaged over candidates, in standard deviations
            of the list's scores; None if the re-ranker gives no scores.
        metric: standard deviation of the query's metric over orders.
        shuffled: mean of the metric over orders.
        searched: the metric with the candidates in the order of the search.
    """

    scores: np.ndarray | None
    metric: np.ndarray
    shuffled: np.ndarray
    searched: np.ndarray


def order_spread(
    reranker: Reranker,
    searched: Search,
    candidates: int,
    queries: np.ndarray,
    device: torch.device,
    batch: int,
    orders: int = 20,
) -> Spread:
    """Re-rank the heads of some lists in the order of the search and in random orders.

    Args:
        reranker: any.
        searched: the search.
        candidates: K.
        queries: (Q,) rows of the search.
        device: of the re-ranker.
        batch: lists at a time.
        orders: random orders of each query.
    """
    generator = torch.Generator().manual_seed(0)
    head = searched.neighbours.first(candidates)
    scores, metrics = [], []
    for query in track(queries, "re-ranking in orders"):
        drawn = [torch.randperm(candidates, generator=generator) for _ in range(orders)]
        order = torch.stack([torch.arange(candidates), *drawn])
        listed, present = torch.from_numpy(head.indices[query])[order], torch.from_numpy(~head.demoted[query])[order]
        rankings = []
        for part in torch.arange(len(order)).split(batch):
            rows = torch.full((len(part),), int(searched.rows[query]))
            lists = Shortlist.gather(searched.queries, rows, searched.gallery, listed[part], device)
            rankings.append(reranker.rerank(replace(lists, present=present[part].to(device))))
        places = order.gather(1, torch.cat([ranking.order.cpu() for ranking in rankings]))
        right, junk = (reordered(np.tile(x[query], (len(order), 1)), places) for x in (searched.right, searched.junk))
        positives = np.repeat(searched.positives[query], len(order))
        metrics.append(searched.suite(right, junk, positives)[searched.suite.main])
        given = [ranking.scores.cpu() for ranking in rankings if ranking.scores is not None]
        if given:
            scores.append(_spread(torch.cat(given), order)[:, ~torch.from_numpy(head.demoted[query])])
    found = np.array(metrics)
    return Spread(
        np.array([float(s.std(dim=0).mean() / s.std(dim=1).mean().clamp(min=1e-12)) for s in scores])
        if scores
        else None,
        found[:, 1:].std(axis=1, ddof=1),
        found[:, 1:].mean(axis=1),
        found[:, 0],
    )


def _spread(scores: Tensor, order: Tensor) -> Tensor:
    """Return the scores (1 + O, K) of the random orders, of the candidates as they stand on the shortlist."""
    return torch.empty_like(scores).scatter(1, order, scores)[1:]
