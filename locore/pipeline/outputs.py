"""The files of a finished run: pictures, rankings and the metrics of every query; and its table as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from locore.datasets import Benchmark
from locore.evaluation.search import Reranked, Search, reordered
from locore.report import pictures
from locore.report.text import bounds, text_row
from locore.utils.files import atomic

PICTURED = 8  # queries in lists.png
RANKINGS = "rankings.npz"


def draw(folder: Path, benchmark: Benchmark, search: Search, order: Tensor, images: bool) -> None:
    """Draw the pictures of one protocol.

    Args:
        folder: of the run.
        benchmark: of the search.
        search: of the protocol.
        order: (Q, K) re-ranked order.
        images: also draw lists, for which the images are needed.
    """
    if images:
        pictures.lists(folder / "lists.png", search, order.numpy(), benchmark.queries, benchmark.gallery, PICTURED)
    orders = {"global": None, "re-ranked": order, "oracle": search.oracle(order.shape[1])}
    pictures.curves(folder / "curves.png", {name: reordered(search.right, o) for name, o in orders.items()})
    main = search.suite.main
    before, after = (100 * search.metrics(o)[main] for o in (None, order))
    pictures.gains(folder / "gains.png", before, after, main)


def write_rankings(path: Path, searches: dict[str, Search], rankings: dict[str, Reranked]) -> None:
    """Write every list before and after re-ranking, for `experiments.report`.

    Each protocol has the arrays rows (Q,) of the queries and positives (Q,) in the whole gallery, and of the K
    candidates indices (Q, K) in the gallery, right and junk (Q, K) bool, similarities (Q, K), order (Q, K), and scores
    (Q, K) where the re-ranker gives them.
    """
    arrays: dict[str, np.ndarray] = {}
    for protocol, search in searches.items():
        found = rankings[protocol]
        head = search.neighbours.first(found.order.shape[1])
        own = {
            "rows": search.rows,
            "positives": search.positives,
            "indices": head.indices.astype(np.int32),
            "right": search.right[:, : found.order.shape[1]],
            "junk": search.junk[:, : found.order.shape[1]],
            "similarities": head.similarities.astype(np.float16),
            "order": found.order.numpy().astype(np.uint16),
        }
        if found.scores is not None:
            own["scores"] = found.scores.numpy().astype(np.float32)
        arrays |= {f"{protocol}/{name}": value for name, value in own.items()}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def metrics_of_queries(searches: dict[str, Search], rankings: dict[str, Reranked], benchmark: Benchmark) -> str:
    """Return every metric of every query of every protocol, before and after re-ranking, as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text)
    for number, (protocol, search) in enumerate(searches.items()):
        columns: dict[str, Sequence] = {
            "protocol": [protocol] * len(search.rows),
            "query": [benchmark.queries.names[row] for row in search.rows],
            "class": search.groups.tolist(),
        }
        for method, order in (("global", None), ("reranked", rankings[protocol].order)):
            for name, values in search.metrics(order).items():
                columns[f"{method} {name}"] = [f"{value:.5g}" for value in values]
        if number == 0:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def table(metrics: dict) -> str:
    """Return the metrics of a run as text: a row a method under each protocol, then what re-ranking changed."""
    protocols = metrics["protocols"]
    parts = [f"{name}\n{_protocol_table(measured)}" for name, measured in protocols.items()]
    return "\n\n".join(parts) if len(protocols) > 1 else _protocol_table(metrics)


def _protocol_table(measured: dict) -> str:
    names = list(measured["global"])
    lines = [text_row("", names)]
    ours = [method for method in ("reranked", "ensemble", "gated") if method in measured]
    for method in ("global", *ours, "oracle", *(["chance"] if "chance" in measured else [])):  # old runs have no chance
        lines.append(text_row(method, (f"{measured[method][n]:.1f}" for n in names)))
    for method in ours:
        gains = (measured[method][n] - measured["global"][n] for n in names)
        lines.append(text_row(f"Δ {method}", (f"{gain:+.1f}" for gain in gains)))
        lines.append(text_row("  95 %", bounds(measured["difference"][method][n] for n in names)))
        for what in ("better", "worse") if "worse" in measured else ():  # old runs do not say
            lines.append(text_row(f"  {what}", (f"{measured[what][method][n]:,}" for n in names)))
    unchanged = f"; re-ranking cannot change {', '.join(measured['unchanged'])}" * bool(measured["unchanged"])
    if "gate_opens" in measured:
        lines.append(f"gated: {measured['gate_opens']:.0f} % of the lists are re-ranked")
    lines.append(f"{measured['queries']:,} queries, shortlist recall {measured['shortlist_recall']:.1f}{unchanged}")
    return "\n".join(lines)
