"""One protocol of a benchmark: rankings of several methods, measured on the same queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from locore import processes
from locore.descriptors.ames import on_disk
from locore.descriptors.store import SearchedTable
from locore.evaluation.bootstrap import interval
from locore.evaluation.measures import Measures
from locore.evaluation.metrics import relevance
from locore.prefetch import ahead
from locore.reranking.ensemble import Ensemble
from locore.reranking.reranker import Ranking, Reranker, Shortlist
from locore.retrieval import Neighbours, nearest

if TYPE_CHECKING:  # benchmarks say how they are measured, so their module imports this package
    from locore.datasets.benchmark import Answers, Relevance


class NothingToAsk(ValueError):
    """A protocol under which no query has a right image."""


@dataclass(frozen=True)
class Search:
    """What re-ranking starts from: queries with a right answer, their neighbours, and what is right.

    Attributes:
        rows: (Q,) which of the queries. neighbours: depth enough for every metric.
        right, junk: (Q, depth) bool, which of the neighbours are right, and which do not count.
        positives: (Q,) right images in the whole gallery. groups: (Q,) class of each query.
        measures: what is reported of every query. answers: the right ones, of all queries.
        listed: the neighbours were not searched but given.
    """

    queries: SearchedTable
    gallery: SearchedTable
    rows: np.ndarray
    neighbours: Neighbours
    right: np.ndarray
    junk: np.ndarray
    positives: np.ndarray
    groups: np.ndarray
    measures: Measures
    answers: Relevance
    listed: bool = False

    @classmethod
    def of(
        cls,
        queries: SearchedTable,
        gallery: SearchedTable,
        answers: Answers,
        groups: np.ndarray,
        self_index: np.ndarray | None,
        candidates: int,
        measures: Measures,
        listed: Neighbours | None = None,
    ) -> Search:
        """Search every query that has a right image, as deep as the candidates and the measures need.

        Args:
            listed: neighbours of all queries that someone has found; None = they are searched.

        Raises:
            NothingToAsk: no query has a right image.
            ValueError: the gallery has fewer images than there are to be candidates, or the lists are shorter.
        """

        found = queries.globals_, gallery.globals_
        if listed is not None and (available := listed.others(self_index)) < candidates:
            raise ValueError(f"The shortlists have {available} candidates where {candidates} are wanted.")
        if callable(answers):
            everyone = np.arange(len(queries))
            answers = answers(nearest(*found, everyone, candidates, self_index, listed=listed).indices)
        rows = np.array([row for row, right in enumerate(answers.positive) if len(right)], dtype=np.int64)
        if not len(rows):
            raise NothingToAsk("No query of this protocol has a right image in the gallery.")
        positive, junk, behind = (
            [images[row] for row in rows] for images in (answers.positive, answers.junk, answers.behind)
        )
        positives = np.array([len(p) for p in positive])
        most = len(gallery) - (self_index is not None)
        depth = max(candidates, measures.depth(positives, most))
        neighbours = nearest(*found, rows, depth, self_index, behind, listed)
        right, ignored = (relevance(neighbours.indices, images) for images in (positive, junk))
        known = listed is not None
        asked = groups[rows]
        return cls(queries, gallery, rows, neighbours, right, ignored, positives, asked, measures, answers, known)

    def rerank(self, reranker: Reranker, candidates: int, batch: int, device: torch.device) -> Reranked:
        """Re-rank the first `candidates` of every list."""
        head = self.neighbours.first(candidates)

        def shortlist(start: int) -> Shortlist:
            part = slice(start, start + batch)
            rows, listed = torch.from_numpy(self.rows[part]), torch.from_numpy(head.indices[part])
            gathered = Shortlist.gather(self.queries, rows, self.gallery, listed, device)
            if self.listed:  # by other descriptors than those that are read
                gathered = replace(gathered, similarities=torch.from_numpy(head.similarities[part]).to(device))
            behind = torch.from_numpy(head.behind[part]).to(device)
            # A gallery may be so small that the lists reach into what was moved behind them.
            return replace(gathered, present=~behind) if behind.any() else gathered

        def reranked(_: int) -> tuple[Ranking, float]:
            lists = next(read)
            begun = time.perf_counter()
            ranking = reranker.rerank(lists)
            ranking = Ranking(ranking.order.cpu(), None if ranking.scores is None else ranking.scores.cpu())
            return ranking, time.perf_counter() - begun

        starts = range(0, len(self.rows), batch)
        read = (ahead if on_disk(self.gallery) else map)(shortlist, processes.share(starts))
        done = processes.spread(reranked, starts, "re-ranking")
        rankings = [ranking for ranking, _ in done]
        scored = [r.scores for r in rankings if r.scores is not None]
        return Reranked(
            order=torch.cat([r.order for r in rankings]),
            scores=torch.cat(scored) if scored else None,
            similarities=torch.from_numpy(head.similarities),
            milliseconds_a_list=1000 * sum(seconds for _, seconds in done) / len(self.rows),
        )

    def metrics(self, order: Tensor | None) -> dict[str, np.ndarray]:
        """Every metric of every query, its first K places put in `order` (Q, K); None = as searched."""
        return self.measures(reordered(self.right, order), reordered(self.junk, order), self.positives)

    def oracle(self, candidates: int) -> Tensor:
        """The best order of the same shortlist."""
        return torch.from_numpy(np.argsort(~self.right[:, :candidates], axis=1, kind="stable"))

    def shortlist_recall(self, candidates: int) -> np.ndarray:
        """(Q,) share of a query's right images, or of as many as fit, that its shortlist holds."""
        return self.right[:, :candidates].sum(axis=1) / np.minimum(self.positives, candidates)


def reordered(places: np.ndarray, order: Tensor | None) -> np.ndarray:
    """(Q, depth) with the head in `order` (Q, K), None = as it is, and the tail untouched."""
    if order is None:
        return places
    head = np.take_along_axis(places, order.numpy(), axis=1)
    return np.concatenate([head, places[:, order.shape[1] :]], axis=1)


@dataclass(frozen=True)
class Reranked:
    """What a re-ranker made of every shortlist: order and scores (Q, K), and how long a list took."""

    order: Tensor
    scores: Tensor | None
    similarities: Tensor
    milliseconds_a_list: float

    def ensemble(self, ensemble: Ensemble) -> Tensor:
        """(Q, K) order by global and local score together."""
        scores = self.comparable_scores
        combined = ensemble(self.similarities, scores).masked_fill(scores == -torch.inf, -torch.inf)
        return combined.argsort(dim=1, descending=True, stable=True)

    def lists(self, rows: Tensor) -> Reranked:
        """Some of the lists."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, order=self.order[rows], scores=scores, similarities=self.similarities[rows])

    @property
    def comparable_scores(self) -> Tensor:
        """(Q, K) scores.

        Raises:
            ValueError: the re-ranker gives none.
        """
        if self.scores is None:
            raise ValueError("This re-ranker gives an order without scores, so it cannot enter an ensemble.")
        return self.scores


def rerank_protocols(
    searches: Mapping[str, Search], candidates: int, rerank: Callable[[Search], Reranked]
) -> dict[str, Reranked]:
    """What `rerank` makes of the searches of several protocols; a list that some of them share is re-ranked once."""
    heads = [searched.neighbours.first(candidates) for searched in searches.values()]
    rows = np.concatenate([searched.rows for searched in searches.values()])
    indices, similarities, behind = (
        np.concatenate([getattr(head, name) for head in heads]) for name in ("indices", "similarities", "behind")
    )
    keys = np.column_stack([rows, indices, behind])
    _, first, places = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they came: by query
    lists, places = first[order], np.argsort(order)[places.ravel()]
    once = replace(
        next(iter(searches.values())),
        rows=rows[lists],
        neighbours=Neighbours(indices[lists], similarities[lists], behind[lists]),
    )
    reranked, ends = rerank(once), np.cumsum([len(searched.rows) for searched in searches.values()])
    return {
        protocol: reranked.lists(torch.from_numpy(part))
        for protocol, part in zip(searches, np.split(places, ends[:-1]), strict=True)
    }


DRAWN = 2000  # random orders at least, of all queries together


def summary(searched: Search, orders: dict[str, Tensor], candidates: int) -> dict:
    """The table of one protocol: means in percent, and differences to global with their 95 % intervals.

    Args:
        orders: (Q, candidates) of each method; global, oracle and chance, the mean of random orders, come by
            themselves.
    """
    random = np.random.default_rng(0)
    drawn = [
        searched.metrics(torch.from_numpy(random.random((len(searched.rows), candidates)).argsort(axis=1)))
        for _ in range(-(-DRAWN // len(searched.rows)))
    ]
    methods = {
        "global": searched.metrics(None),
        **{method: searched.metrics(order) for method, order in orders.items()},
        "oracle": searched.metrics(searched.oracle(candidates)),
        "chance": {name: np.mean([each[name] for each in drawn], axis=0) for name in drawn[0]},
    }
    percent = {m: {name: 100 * float(v.mean()) for name, v in values.items()} for m, values in methods.items()}

    def differences(method: str) -> dict[str, list[float]]:
        return {
            name: [100 * bound for bound in interval(values - methods["global"][name], searched.groups)]
            for name, values in methods[method].items()
        }

    return {
        **percent,
        "difference": {method: differences(method) for method in orders},
        "shown": searched.measures.shown,
        "unchanged": [n for n, v in methods["oracle"].items() if np.array_equal(v, methods["global"][n])],
        "shortlist_recall": 100 * float(searched.shortlist_recall(candidates).mean()),
        "queries": len(searched.rows),
    }
