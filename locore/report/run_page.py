"""One self-contained HTML page of several runs."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from plotly.offline import get_plotlyjs

from locore.datasets import Benchmark, ImageSet
from locore.metrics.bootstrap import interval
from locore.probes.attribution import Explained
from locore.report.probes import Probes, meaning, two_digits
from locore.utils.progress import track

SHOWN = 10  # places of a list
SIDE, QUALITY = 96, 70  # of a picture, pixels and WebP's


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of its folder.
        metrics: of its metrics.json.
        queries: rows of its queries.csv.
        lists: of its rankings.
        explained: of some lists of the first protocol, the explanations of the first scores, see `explain`.
    """

    name: str
    metrics: dict[str, Any]
    queries: list[dict[str, str]]
    lists: dict[str, np.ndarray]
    explained: dict[int, list[Explained]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, lists: Path) -> Run:
        """Read a run from its folder.

        Raises:
            ValueError: a file is damaged.
        """
        try:
            metrics = json.loads((folder / "metrics.json").read_text())
            queries = list(csv.DictReader(io.StringIO((folder / "queries.csv").read_text())))
            if not (isinstance(metrics, dict) and metrics.get("protocols") and queries):
                raise ValueError("a file is empty")
            with np.load(lists, allow_pickle=False) as file:
                return cls(folder.name, metrics, queries, dict(file))
        except Exception as error:  # a damaged zip fails in many ways
            raise ValueError(f"'{folder}' cannot be read ({error}); run it again.") from error

    def of(self, protocol: str) -> dict[str, np.ndarray]:
        """Return the lists of a protocol; empty if it has no such protocol."""
        return {n.split("/")[1]: value for n, value in self.lists.items() if n.startswith(f"{protocol}/")}


def page(groups: list[tuple[Benchmark, list[Run]]], queries: int, probes: Probes | None = None) -> str:
    """Return the page.

    Args:
        groups: benchmarks with the runs on each.
        queries: number of queries of each protocol that are shown at most.
        probes: of some of the runs; None = none are shown.

    Raises:
        ValueError: runs of one benchmark have different queries or protocols.
    """
    data = {"benchmarks": [_benchmark(benchmark, runs, queries) for benchmark, runs in groups]}
    try:
        text = embedded(data)
    except ValueError as error:
        raise ValueError("A run has metrics that are not finite; run it again.") from error
    return rendered(
        "page.html.j2", data=text, plotly=get_plotlyjs(), probes=probes, meaning=meaning, two_digits=two_digits
    )


def drawn(count: int, queries: int) -> list[int]:
    """Draw which of `count` queries are shown, if no more than `queries` are."""
    return np.sort(np.random.default_rng(0).permutation(count)[:queries]).tolist()


def embedded(data: Any) -> str:
    """Return data as JSON for a page's script, safe from tags in it.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def rendered(template: str, **values: Any) -> str:
    """Fill in one of the templates."""
    loader = PackageLoader("locore.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(template).render(values)


def _benchmark(benchmark: Benchmark, runs: list[Run], queries: int) -> dict[str, Any]:
    """Return what the page shows of one benchmark."""
    first = runs[0]
    for run in runs[1:]:
        known = [[(row["protocol"], row["query"]) for row in each.queries] for each in (first, run)]
        if known[0] != known[1]:
            raise ValueError(f"'{first.name}' and '{run.name}' have different queries of '{benchmark.name}'.")
    protocols = list(first.metrics["protocols"])
    pictures, hard = Pictures(benchmark), _hard(first)
    return {
        "name": benchmark.name,
        "runs": [_summary(run) for run in runs],
        "protocols": {p: _protocol(p, runs, pictures, hard, queries) for p in protocols},
        "pictures": pictures.made(),
    }


def _summary(run: Run) -> dict[str, Any]:
    """Return a run's row of the table, without the columns that depend on the protocol."""
    metrics = run.metrics
    return {
        "name": run.name,
        "method": metrics["backbone"],
        "parameters": metrics["parameters"],
        "latency": metrics["latency_ms"],
        "memory": metrics["peak_memory_mb"],
        "training": metrics["seconds"].get("training", 0),
        "candidates": metrics["candidates"],
        "seed": metrics["seed"],
        "commit": metrics["commit"],
        "machine": metrics["machine"],
    }


def _protocol(
    protocol: str, runs: list[Run], pictures: Pictures, hard: set[tuple[int, int]], queries: int
) -> dict[str, Any]:
    """Return metrics, curves and queries of one protocol."""
    measured = [run.metrics["protocols"][protocol] for run in runs]
    for run, each in zip(runs, measured, strict=True):
        if each["global"] != measured[0]["global"]:
            raise ValueError(f"'{runs[0].name}' and '{run.name}' start from different searches; make a page of each.")
    main = measured[0]["shown"][-1]
    rows = [[row for row in run.queries if row["protocol"] == protocol] for run in runs]
    lists = [run.of(protocol) for run in runs]
    before = np.array([float(row[f"global {main}"]) for row in rows[0]])
    after = [np.array([float(row[f"reranked {main}"]) for row in each]) for each in rows]
    groups = np.array([row["class"] for row in rows[0]])
    count = len(before)
    return {
        "main": main,
        "metrics": measured[0]["shown"],
        "global": measured[0]["global"],
        "oracle": [each["oracle"] for each in measured],
        "reranked": [each["reranked"] for each in measured],
        "interval": [[100 * bound for bound in interval(each - before, groups)] for each in after],
        "curves": {"global": _curve(lists[0], None), "runs": [_curve(each, each["order"]) for each in lists]},
        "queries": [
            {
                "name": rows[0][row]["query"],
                "picture": pictures.query(int(lists[0]["rows"][row])),
                "right": int(lists[0]["right"][row].sum()),
                "positives": int(lists[0]["positives"][row]),
                "before": round(100 * float(before[row]), 2),
                "after": [round(100 * float(each[row]), 2) for each in after],
                "first": _places(lists[0], row, np.arange(lists[0]["order"].shape[1]), pictures, hard),
                "lists": [_places(each, row, each["order"][row], pictures, hard) for each in lists],
                **_explained(protocol, row, runs),
            }
            for row in drawn(count, queries)
        ],
        "asked": count,
    }


def _explained(protocol: str, row: int, runs: list[Run]) -> dict[str, Any]:
    """Return the explanations of a query's list under each run; empty if no run has any."""
    if protocol != next(iter(runs[0].metrics["protocols"])) or not any(row in run.explained for run in runs):
        return {}
    return {"explained": [run.explained.get(row) for run in runs]}


def _curve(lists: dict[str, np.ndarray], order: np.ndarray | None) -> list[float]:
    """Return the share of queries in percent with a right image among the first k, junk removed."""
    right, junk = lists["right"], lists["junk"]
    if order is not None:
        right, junk = (np.take_along_axis(x, order.astype(np.int64), axis=1) for x in (right, junk))
    depth = right.shape[1]
    recalls = np.zeros(depth)
    for hits, ignored in zip(right, junk, strict=True):
        places = np.flatnonzero(hits[~ignored])
        if len(places):
            recalls[places[0] :] += 1
    return [round(100 * float(x) / len(right), 2) for x in recalls]


def _hard(run: Run) -> set[tuple[int, int]]:
    """Return query and gallery image of the positives of the protocol "hard", if there is one."""
    lists = run.of("hard")
    if not lists:
        return set()
    rows, places = np.nonzero(lists["right"])
    return set(zip(lists["rows"][rows].tolist(), lists["indices"][rows, places].tolist(), strict=True))


def _places(
    lists: dict[str, np.ndarray], row: int, order: np.ndarray, pictures: Pictures, hard: set[tuple[int, int]]
) -> list[list[Any]]:
    """Return the first places of a list: picture, kind, place before, similarity and score."""
    found = []
    for place in order[:SHOWN].astype(int).tolist():
        kind = "right" if lists["right"][row, place] else "junk" if lists["junk"][row, place] else "wrong"
        score = float(lists["scores"][row, place]) if "scores" in lists else None
        similarity = round(float(lists["similarities"][row, place]), 4)
        image = int(lists["indices"][row, place])
        if kind == "right" and (int(lists["rows"][row]), image) in hard:
            kind = "hard"
        picture = pictures.listed(image)
        found.append([picture, kind, place + 1, similarity, score if score is None or np.isfinite(score) else None])
    return found


class Pictures:
    """Thumbnails of the images that a page shows, each once."""

    def __init__(self, benchmark: Benchmark):
        self._sets: dict[str, ImageSet] = {"q": benchmark.queries, "g": benchmark.gallery}
        self._wanted: dict[tuple[str, int], int] = {}

    def query(self, index: int) -> int:
        """Return the number of a query's picture."""
        return self._wanted.setdefault(("q", index), len(self._wanted))

    def listed(self, index: int) -> int:
        """Return the number of a gallery image's picture."""
        return self._wanted.setdefault(("g", index), len(self._wanted))

    def made(self) -> list[dict[str, str | None]]:
        """Return name and data of every picture; no data if the image cannot be read."""
        return [
            {"name": self._sets[which].names[index], "data": _picture(self._sets[which], index)}
            for which, index in track(self._wanted, "drawing pictures")
        ]


def _picture(images: ImageSet, index: int) -> str | None:
    try:
        return webp(images.image(index), SIDE)
    except ValueError:
        return None


def webp(image: Image.Image, side: int) -> str:
    """Return a thumbnail of an image, WebP in base64."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
