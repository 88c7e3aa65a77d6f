"""What a run leaves of its result: a table, pictures and the metrics of every query."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from locore.datasets import Benchmark
from locore.evaluation import Reranked, Search, reordered
from locore.files import atomic
from locore.report import pictures

PICTURED = 8  # queries in lists.png


def draw(folder: Path, benchmark: Benchmark, searched: Search, order: Tensor, images: bool) -> None:
    """Pictures of one protocol, its lists re-ranked to `order` (Q, K); lists only where images are at hand."""
    if images:
        pictures.lists(folder / "lists.png", searched, order.numpy(), benchmark.queries, benchmark.gallery, PICTURED)
    orders = {"global": None, "re-ranked": order, "oracle": searched.oracle(order.shape[1])}
    pictures.curves(folder / "curves.png", {name: reordered(searched.right, o) for name, o in orders.items()})
    main = searched.measures.main
    before, after = (100 * searched.metrics(o)[main] for o in (None, order))
    pictures.gains(folder / "gains.png", before, after, main)


def rankings(path: Path, searches: dict[str, Search], reranked: dict[str, Reranked]) -> None:
    """Write every list before and after re-ranking, which `experiments.report` shows.

    Of each protocol: rows (Q,) of the queries, positives (Q,) in the whole gallery, and of the K candidates indices
    (Q, K) in the gallery, right and junk (Q, K) bool, similarities (Q, K), order (Q, K), and scores (Q, K) or nothing.
    """
    arrays: dict[str, np.ndarray] = {}
    for protocol, searched in searches.items():
        found = reranked[protocol]
        head = searched.neighbours.first(found.order.shape[1])
        kept = {
            "rows": searched.rows,
            "positives": searched.positives,
            "indices": head.indices.astype(np.int32),
            "right": searched.right[:, : found.order.shape[1]],
            "junk": searched.junk[:, : found.order.shape[1]],
            "similarities": head.similarities.astype(np.float16),
            "order": found.order.numpy().astype(np.uint16),
        }
        if found.scores is not None:
            kept["scores"] = found.scores.numpy().astype(np.float32)
        arrays |= {f"{protocol}/{name}": value for name, value in kept.items()}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def each_query(searches: dict[str, Search], rankings: dict[str, Reranked], benchmark: Benchmark) -> str:
    """Every metric of every query of every protocol before and after re-ranking, as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text)
    for number, (protocol, searched) in enumerate(searches.items()):
        columns: dict[str, Sequence] = {
            "protocol": [protocol] * len(searched.rows),
            "query": [benchmark.queries.names[row] for row in searched.rows],
            "class": searched.groups.tolist(),
        }
        for method, places in (("global", None), ("reranked", rankings[protocol].order)):
            for name, values in searched.metrics(places).items():
                columns[f"{method} {name}"] = [f"{value:.5g}" for value in values]
        if number == 0:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def table(metrics: dict) -> str:
    """The result as text: under each protocol a row a method, then what re-ranking changed."""
    protocols = metrics["protocols"]
    parts = [f"{name}\n{_protocol(measured)}" for name, measured in protocols.items()]
    return "\n\n".join(parts) if len(protocols) > 1 else _protocol(metrics)


def _protocol(measured: dict) -> str:
    names = list(measured["global"])
    lines = ["            " + "".join(f"{n:>16}" for n in names)]
    ours = [method for method in ("reranked", "ensemble") if method in measured]
    for method in ("global", *ours, "oracle", *(["chance"] if "chance" in measured else [])):  # earlier runs have none
        lines.append(f"{method:<12}" + "".join(f"{measured[method][n]:>16.1f}" for n in names))
    for method in ours:
        gains = (f"{measured[method][n] - measured['global'][n]:+.1f}" for n in names)
        lines.append(f"Δ {method:<10}" + "".join(f"{gain:>16}" for gain in gains))
        bounds = (f"[{low:+.1f}, {high:+.1f}]" for low, high in (measured["difference"][method][n] for n in names))
        lines.append(f"{'  95 %':<12}" + "".join(f"{interval:>16}" for interval in bounds))
    unchanged = f"; re-ranking cannot change {', '.join(measured['unchanged'])}" * bool(measured["unchanged"])
    lines.append(f"shortlist recall {measured['shortlist_recall']:.1f}{unchanged}")
    return "\n".join(lines)
