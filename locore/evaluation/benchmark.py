"""Measure any re-ranker on any benchmark, in one call."""

from __future__ import annotations

from typing import Any

from torch import nn

from locore.datasets.benchmark import Benchmark
from locore.descriptors.extractor import Extractor
from locore.evaluation.search import NoPositives, Search, rerank_protocols, summary
from locore.reranking.reranker import Reranker, describe_mismatch, lists_at_once
from locore.utils import distributed


def evaluate(
    reranker: Reranker, benchmark: Benchmark, extractor: Extractor, candidates: int = 100
) -> dict[str, dict[str, Any]]:
    """Re-rank the first candidates of every query and measure the result under each protocol.

    Args:
        reranker: anything with `rerank(shortlist) -> Ranking`; lists that are longer than a list-wise model was trained
            on need `Windows` around it.
        benchmark: such as `locore.benchmarks.create("folder", path="photos/")`.
        extractor: of the descriptors, which are cached on disk.
        candidates: K, re-ranked of each query.

    Returns:
        Of each protocol the metrics in percent of the rows "global", "reranked", "oracle" and "chance", and in
        "difference" the 95 % interval of re-ranked less global.

    Raises:
        ValueError: the re-ranker reads other descriptors, no query has a positive, or the gallery has fewer images than
            candidates.
    """
    queries, gallery = extractor.extract(benchmark.queries), extractor.extract(benchmark.gallery)
    if mismatch := describe_mismatch(reranker, queries[:1]):
        raise ValueError(f"The re-ranker reads {mismatch}; give the extractor that it was trained with.")
    searches: dict[str, Search] = {}
    for protocol in benchmark.protocols:
        try:
            searches[protocol] = Search.build(benchmark, queries, gallery, candidates, protocol)
        except NoPositives:
            continue
    if not searches:
        raise ValueError(f"No query of '{benchmark.name}' has a positive in the gallery.")
    device = distributed.device()
    if isinstance(reranker, nn.Module):
        reranker.to(device)
    tokens = (1 + candidates) * (extractor.locals_per_image + 2)  # of a list, with the global token and SEP
    batch = lists_at_once(reranker, tokens, extractor.sizes)
    rankings = rerank_protocols(searches, candidates, lambda s: s.rerank(reranker, candidates, batch, device))
    return {p: summary(search, {"reranked": rankings[p].order}, candidates) for p, search in searches.items()}
