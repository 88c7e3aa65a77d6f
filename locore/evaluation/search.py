"""A search under one protocol of a benchmark: re-ranked by several methods, measured on the same queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from locore.datasets.benchmark import Benchmark, Relevance
from locore.descriptors.ames_files import on_disk
from locore.descriptors.table import SearchedTable
from locore.metrics.bootstrap import interval
from locore.metrics.retrieval import relevance
from locore.metrics.suites import Suite
from locore.reranking.ensemble import Ensemble, StandardisedEnsemble
from locore.reranking.reranker import Ranking, Reranker, Shortlist
from locore.retrieval import SORTED, Neighbours, nearest
from locore.utils import distributed
from locore.utils.prefetch import ahead

RANDOM_ORDERS = 2000  # random orders for the row "chance", at least, over all queries together
LEAST_CHANGE = 1e-9  # of a metric in [0, 1]; less is rounding


class NoPositives(ValueError):
    """No query of a protocol has a positive."""


@dataclass(frozen=True)
class Search:
    """What re-ranking starts from: queries that have a positive, their neighbours, and which of these are right.

    Attributes:
        queries: descriptors of all queries.
        gallery: descriptors of the gallery.
        rows: (Q,) indices of the queries that have a positive.
        neighbours: of these queries, as deep as every metric needs (see `build` for several processes).
        right: (Q, depth) bool, which neighbours are positives.
        junk: (Q, depth) bool, which neighbours are not counted.
        positives: (Q,) number of positives in the whole gallery.
        groups: (Q,) class of each query.
        suite: the metrics.
        answers: the right answers of all queries.
        given: the neighbours come from a file, not from these descriptors.
    """

    queries: SearchedTable
    gallery: SearchedTable
    rows: np.ndarray
    neighbours: Neighbours
    right: np.ndarray
    junk: np.ndarray
    positives: np.ndarray
    groups: np.ndarray
    suite: Suite
    answers: Relevance
    given: bool = False

    @classmethod
    def build(
        cls,
        benchmark: Benchmark,
        queries: SearchedTable,
        gallery: SearchedTable,
        candidates: int,
        protocol: str | None = None,
        neighbours: Neighbours | None = None,
        once: bool = False,
    ) -> Search:
        """Search every query that has a positive, as deep as the candidates and the metrics need.

        Args:
            benchmark: says what is right.
            queries: descriptors of the benchmark's queries.
            gallery: descriptors of its gallery.
            candidates: K, the number of candidates that will be re-ranked.
            protocol: one of the benchmark's; None = the first.
            neighbours: of all queries, from a file; None = they are searched.
            once: of several processes the first alone has rankings that are deeper than `SORTED`, such as of a million
                images, and measures; the others have the candidates.

        Raises:
            NoPositives: no query has a positive.
            ValueError: the gallery, or a list of given neighbours, has fewer images than candidates.
        """
        answers = benchmark.protocols[protocol or next(iter(benchmark.protocols))]
        own, vectors = benchmark.self_index, (queries.global_matrix, gallery.global_matrix)
        if neighbours is not None and (available := neighbours.others(own)) < candidates:
            raise ValueError(f"The shortlists have {available} candidates, but {candidates} are needed.")
        if callable(answers):
            everyone = np.arange(len(queries))
            answers = answers(nearest(*vectors, everyone, candidates, own, given=neighbours).indices)
        rows = np.array([row for row, right in enumerate(answers.positive) if len(right)], dtype=np.int64)
        if not len(rows):
            raise NoPositives("No query of this protocol has a positive in the gallery.")
        positive, junk, demoted = (
            [images[row] for row in rows] for images in (answers.positive, answers.junk, answers.demoted)
        )
        positives = np.array([len(p) for p in positive])
        depth = max(candidates, benchmark.suite.depth(positives, len(gallery) - (own is not None)))

        def searched() -> Neighbours:
            return nearest(*vectors, rows, depth, own, demoted, neighbours)

        if once and depth > SORTED and distributed.count() > 1:
            found = searched() if distributed.first() else None
            head = distributed.agreed(found.first(candidates) if found else None)
            found = found or head
        else:
            found = searched()
        assert found is not None
        return cls(
            queries=queries,
            gallery=gallery,
            rows=rows,
            neighbours=found,
            right=relevance(found.indices, positive),
            junk=relevance(found.indices, junk),
            positives=positives,
            groups=benchmark.queries.labels[rows],
            suite=benchmark.suite,
            answers=answers,
            given=neighbours is not None,
        )

    def rerank(self, reranker: Reranker, candidates: int, batch: int, device: torch.device) -> Reranked:
        """Re-rank the first `candidates` of every list, `batch` lists at a time; processes share the lists."""
        head, reads_disk = self.neighbours.first(candidates), on_disk(self.gallery)
        gathered_on = torch.device("cpu") if reads_disk else device  # by others, who may not use a GPU

        def shortlist(start: int) -> Shortlist:
            part = slice(start, start + batch)
            rows, indices = torch.from_numpy(self.rows[part]), torch.from_numpy(head.indices[part])
            gathered = Shortlist.gather(self.queries, rows, self.gallery, indices, gathered_on)
            if self.given:  # by other descriptors than those that are read
                gathered = replace(gathered, similarities=torch.from_numpy(head.similarities[part]).to(gathered_on))
            demoted = torch.from_numpy(head.demoted[part]).to(gathered_on)
            # A gallery may be so small that the lists reach into the demoted images.
            return replace(gathered, present=~demoted) if demoted.any() else gathered

        def reranked(_: int) -> tuple[Ranking, float]:
            lists = next(read).to(device)
            started = time.perf_counter()
            ranking = reranker.rerank(lists)
            ranking = Ranking(ranking.order.cpu(), None if ranking.scores is None else ranking.scores.cpu())
            return ranking, time.perf_counter() - started

        starts = range(0, len(self.rows), batch)
        read = (ahead if reads_disk else map)(shortlist, distributed.share(starts))
        done = distributed.spread(reranked, starts, "re-ranking")
        rankings = [ranking for ranking, _ in done]
        scored = [r.scores for r in rankings if r.scores is not None]
        return Reranked(
            order=torch.cat([r.order for r in rankings]),
            scores=torch.cat(scored) if scored else None,
            similarities=torch.from_numpy(head.similarities),
            milliseconds_a_list=1000 * sum(seconds for _, seconds in done) / len(self.rows),
        )

    def metrics(self, order: Tensor | None) -> dict[str, np.ndarray]:
        """Return every metric of every query, its first K places in `order` (Q, K); None = as searched."""
        return self.suite(reordered(self.right, order), reordered(self.junk, order), self.positives)

    def oracle(self, candidates: int) -> Tensor:
        """Return the best order (Q, K) of the first K candidates."""
        return torch.from_numpy(np.argsort(~self.right[:, :candidates], axis=1, kind="stable"))

    def shortlist_recall(self, candidates: int) -> np.ndarray:
        """Return (Q,) the share of a query's positives, or of as many as fit, that its shortlist holds."""
        return self.right[:, :candidates].sum(axis=1) / np.minimum(self.positives, candidates)


def reordered(places: np.ndarray, order: Tensor | None) -> np.ndarray:
    """Put the head of each row of `places` (Q, depth) in `order` (Q, K); None = leave it as it is."""
    if order is None:
        return places
    head = np.take_along_axis(places, order.numpy(), axis=1)
    return np.concatenate([head, places[:, order.shape[1] :]], axis=1)


@dataclass(frozen=True)
class Reranked:
    """The result of re-ranking every shortlist.

    Attributes:
        order: (Q, K) places on the shortlist, best first.
        scores: (Q, K) of the candidates as they stand on the shortlist; None if the re-ranker gives an order alone.
        similarities: (Q, K) of the search.
        milliseconds_a_list: mean time of a list.
    """

    order: Tensor
    scores: Tensor | None
    similarities: Tensor
    milliseconds_a_list: float

    def ensemble(self, ensemble: Ensemble | StandardisedEnsemble) -> Tensor:
        """Return the order (Q, K) by global similarity and score together."""
        scores = self.comparable_scores()
        combined = ensemble(self.similarities, scores).masked_fill(scores == -torch.inf, -torch.inf)
        return combined.argsort(dim=1, descending=True, stable=True)

    def lists(self, rows: Tensor) -> Reranked:
        """Select some of the lists."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, order=self.order[rows], scores=scores, similarities=self.similarities[rows])

    def comparable_scores(self) -> Tensor:
        """Return the scores (Q, K).

        Raises:
            ValueError: the re-ranker gives none.
        """
        if self.scores is None:
            raise ValueError("This re-ranker gives an order without scores, so it cannot enter an ensemble.")
        return self.scores


def rerank_protocols(
    searches: Mapping[str, Search], candidates: int, rerank: Callable[[Search], Reranked]
) -> dict[str, Reranked]:
    """Re-rank the searches of several protocols; a list that protocols share is re-ranked once.

    Args:
        searches: by protocol.
        candidates: K.
        rerank: re-ranks a search.
    """
    heads = [search.neighbours.first(candidates) for search in searches.values()]
    rows = np.concatenate([search.rows for search in searches.values()])
    indices, similarities, demoted = (
        np.concatenate([getattr(head, name) for head in heads]) for name in ("indices", "similarities", "demoted")
    )
    keys = np.column_stack([rows, indices, demoted])
    _, first, places = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they came: by query
    lists, places = first[order], np.argsort(order)[places.ravel()]
    once = replace(
        next(iter(searches.values())),
        rows=rows[lists],
        neighbours=Neighbours(indices[lists], similarities[lists], demoted[lists]),
    )
    reranked, ends = rerank(once), np.cumsum([len(search.rows) for search in searches.values()])
    return {
        protocol: reranked.lists(torch.from_numpy(part))
        for protocol, part in zip(searches, np.split(places, ends[:-1]), strict=True)
    }


def summary(search: Search, orders: dict[str, Tensor], candidates: int) -> dict:
    """Return the table of one protocol: means in percent, differences to global with 95 % intervals, and numbers of
    queries that became better and worse.

    Args:
        search: of the protocol.
        orders: (Q, K) of each method. The rows global, oracle and chance (the mean of random orders) are added.
        candidates: K.
    """
    random = np.random.default_rng(0)
    drawn = [
        search.metrics(torch.from_numpy(random.random((len(search.rows), candidates)).argsort(axis=1)))
        for _ in range(-(-RANDOM_ORDERS // len(search.rows)))
    ]
    methods = {
        "global": search.metrics(None),
        **{method: search.metrics(order) for method, order in orders.items()},
        "oracle": search.metrics(search.oracle(candidates)),
        "chance": {name: np.mean([each[name] for each in drawn], axis=0) for name in drawn[0]},
    }
    percent = {m: {name: 100 * float(v.mean()) for name, v in values.items()} for m, values in methods.items()}

    def differences(method: str) -> dict[str, list[float]]:
        return {
            name: [100 * bound for bound in interval(values - methods["global"][name], search.groups)]
            for name, values in methods[method].items()
        }

    def changed(method: str, sign: int) -> dict[str, int]:
        gains = {name: sign * (values - methods["global"][name]) for name, values in methods[method].items()}
        return {name: int((gain > LEAST_CHANGE).sum()) for name, gain in gains.items()}

    return {
        **percent,
        "difference": {method: differences(method) for method in orders},
        "better": {method: changed(method, 1) for method in orders},
        "worse": {method: changed(method, -1) for method in orders},
        "shown": search.suite.shown,
        "unchanged": [n for n, v in methods["oracle"].items() if np.array_equal(v, methods["global"][n])],
        "shortlist_recall": 100 * float(search.shortlist_recall(candidates).mean()),
        "queries": len(search.rows),
    }
