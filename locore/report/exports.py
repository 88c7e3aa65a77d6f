"""Rankings and right answers in the formats of other tools: TREC's (trec_eval, ir-measures, ranx) and ILIAS's."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from locore.datasets.benchmark import Benchmark
from locore.evaluation.search import Search, reordered
from locore.utils import files

DEPTH = 1000  # places of a ranking


def write_trec(
    folder: Path, protocol: str, searched: Search, orders: dict[str, Tensor | None], benchmark: Benchmark
) -> None:
    """Write `<protocol>.qrels` and, of each method, `<protocol>.<method>.run`; junk is left out.

    Args:
        folder: of the files.
        protocol: name of the protocol.
        searched: its search.
        orders: (Q, K) order of each method; None = as searched.
        benchmark: names the images.
    """
    name = protocol.replace("*", "-star")
    queries, gallery = ([_word(n) for n in images.names] for images in (benchmark.queries, benchmark.gallery))
    lines = [
        f"{queries[row]} 0 {gallery[image]} 1" for row in searched.rows for image in searched.answers.positive[row]
    ]
    files.write_text(folder / f"{name}.qrels", "\n".join(lines) + "\n")
    for method, order in orders.items():
        indices, junk = (reordered(x, order) for x in (searched.neighbours.indices, searched.junk))
        lines = [
            f"{queries[row]} Q0 {gallery[image]} {place} {-place} {method}"
            for row, found, ignored in zip(searched.rows, indices, junk, strict=True)
            for place, image in enumerate(found[~ignored][:DEPTH], start=1)
        ]
        files.write_text(folder / f"{name}.{method}.run", "\n".join(lines) + "\n")


def write_json(folder: Path, searched: Search, orders: dict[str, Tensor | None], benchmark: Benchmark) -> None:
    """Write `<method>.json` of each method, `{query: {image: value}}`, as ILIAS's evaluation reads it.

    The values only order the images, from 1 downwards, so that no two are equal.

    Args:
        folder: of the files.
        searched: a search.
        orders: (Q, K) order of each method; None = as searched.
        benchmark: names the images.
    """
    queries, gallery = benchmark.queries.names, benchmark.gallery.names
    for method, order in orders.items():
        indices = reordered(searched.neighbours.indices, order)[:, :DEPTH]
        found = {
            queries[row]: {gallery[image]: 1 - place / DEPTH for place, image in enumerate(listed)}
            for row, listed in zip(searched.rows, indices, strict=True)
        }
        files.write_json(folder / f"{method}.json", found)


def _word(name: str) -> str:
    """Escape the spaces of a name, which separate TREC's columns, so that different names stay different."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), name)
