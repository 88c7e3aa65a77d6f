"""The results of a board on disk: `runs.csv`, a line a run, and `queries.npz`, the metrics of each query."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from locore.utils.files import atomic, write_csv

RUNS, QUERIES = "runs.csv", "queries.npz"
NAMES = ("commit", "machine", "benchmark", "backbone", "start")
METHODS = ("global", "reranked", "ensemble", "gated", "oracle", "chance")
COUNTS = ("queries", "gate_opens")  # of a protocol, beside its metrics
COSTS = ("ms", "mb", "gflops", "stored")  # of a list on one machine, see `experiments.compare --costs`
FIELDS = (
    "parameters",
    "state_size",
    "descriptor_bytes",
    "candidates",
    "alpha",
    "temperature",
    "latency_ms",
    "peak_memory_mb",
)

QueryMetrics = dict[str, dict[str, np.ndarray]]  # protocol -> metric -> (Q,), with "query" and "class"


@dataclass(frozen=True)
class BoardRun:
    """A run of a board.

    Attributes:
        row: name of the table's row.
        config: hash of the configuration.
        metrics: as `metrics.json` holds them, as far as tables need them.
        queries: metrics of each query after re-ranking.
    """

    row: str
    config: str
    metrics: dict[str, Any]
    queries: QueryMetrics


@dataclass
class BoardResults:
    """All runs of a board, by row and seed.

    Attributes:
        folder: of the board.
        runs: the runs.
        costs: what a list costs, by row, as far as it was measured; and its "machine" and "commit".
    """

    folder: Path
    runs: dict[tuple[str, int], BoardRun] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> BoardResults:
        """Read a folder; a missing one has no runs.

        Raises:
            ValueError: a file is damaged, or the two do not belong together.
        """
        found = cls(folder)
        if not (folder / RUNS).exists():
            return found
        try:
            queries = _read_queries(folder / QUERIES)
            with open(folder / RUNS, newline="") as file:
                for line in csv.DictReader(file):
                    key = line["row"], int(line["seed"])
                    found.runs[key] = BoardRun(line["row"], line["config"], _metrics(line), queries[key])
                    if line.get("cost ms"):
                        found.costs[line["row"]] = _costs(line)
            if found.runs.keys() != queries.keys():
                raise ValueError(f"they hold {len(found.runs)} and {len(queries)} runs")
        except Exception as error:  # a damaged zip or table fails in many ways
            raise ValueError(
                f"The results in '{folder}' are damaged ({error!r}); restore {RUNS} and {QUERIES}, or delete both."
            ) from error
        return found

    def add(self, row: str, config: str, metrics: Mapping[str, Any], queries: str) -> None:
        """Add a finished run and write both files.

        Args:
            row: name of the table's row.
            config: hash of its configuration.
            metrics: of its `metrics.json`.
            queries: text of its `queries.csv`.
        """
        run = BoardRun(row, config, _shown(metrics), parse_queries(queries))
        self.runs[row, metrics["seed"]] = run
        self.write()

    def write(self) -> None:
        """Write both files, each whole or absent, the one that the other refers to first."""
        _write_queries(self.folder / QUERIES, self.runs)
        lines = [_line(run, self.costs.get(run.row)) for run in self.runs.values()]
        header = list(dict.fromkeys(name for line in lines for name in line))
        write_csv(self.folder / RUNS, header, lines)

    def finished(self, rows: Iterable[str] | None = None) -> dict[str, list[BoardRun]]:
        """Return the runs by row, in the order of `rows`; None = all rows as they came."""
        names = list(rows) if rows is not None else list(dict.fromkeys(row for row, _ in self.runs))
        return {name: found for name in names if (found := [run for (row, _), run in self.runs.items() if row == name])}


def parse_queries(text: str) -> QueryMetrics:
    """Read the metrics after re-ranking from the text of a run's `queries.csv`, and those before as "global …"."""
    lines = list(csv.DictReader(io.StringIO(text)))
    protocols = dict.fromkeys(line["protocol"] for line in lines)
    found: QueryMetrics = {}
    for protocol in protocols:
        own = [line for line in lines if line["protocol"] == protocol]
        columns = {name: [line[name] for line in own] for name in own[0] if name != "protocol"}
        found[protocol] = {
            name.removeprefix("reranked "): np.array(values) if name in ("query", "class") else np.array(values, float)
            for name, values in columns.items()
        }
    return found


def _shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a run's metrics what tables need."""
    names = (*NAMES, "seed", *FIELDS)
    kept = {name: metrics.get(name) for name in names}
    kept["seconds"] = {name: value for name, value in metrics["seconds"].items() if name == "training"}
    kept["protocols"] = {
        protocol: {name: value for name, value in measured.items() if name in (*METHODS, *COUNTS, "shown")}
        for protocol, measured in metrics["protocols"].items()
    }
    return kept


def _line(run: BoardRun, costs: dict[str, Any] | None) -> dict[str, Any]:
    """Return the line of a run in `runs.csv`."""
    metrics = run.metrics
    line = {"row": run.row, "seed": metrics["seed"], "config": run.config}
    line |= {name: metrics[name] for name in NAMES}
    line |= {name: "" if metrics[name] is None else metrics[name] for name in FIELDS}
    line["training_s"] = metrics["seconds"].get("training", "")
    line["shown"] = " ".join(next(iter(metrics["protocols"].values()))["shown"])
    for protocol, measured in metrics["protocols"].items():
        line |= {f"{protocol}: {name}": measured[name] for name in COUNTS if name in measured}
        for method in (method for method in METHODS if method in measured):
            line |= {f"{protocol}: {method} {name}": value for name, value in measured[method].items()}
    if costs:
        line |= {f"cost {name}": "" if costs[name] is None else costs[name] for name in (*COSTS, "machine", "commit")}
    return line


def _metrics(line: Mapping[str, str]) -> dict[str, Any]:
    """Return the metrics of a line of `runs.csv`."""
    found: dict[str, Any] = {name: line.get(name, "") for name in NAMES}  # earlier files have no start
    found |= {name: _number(line.get(name, "")) for name in (*FIELDS, "seed")}  # earlier files have fewer
    found["seconds"] = {"training": _number(line["training_s"])} if line["training_s"] else {}
    protocols: dict[str, dict[str, Any]] = {}
    for column, value in line.items():
        protocol, _, name = column.partition(": ")
        if not name or value == "":
            continue
        measured = protocols.setdefault(protocol, {"shown": line["shown"].split()})
        if name in COUNTS:
            measured[name] = _number(value)
        else:
            method, _, metric = name.partition(" ")
            measured.setdefault(method, {})[metric] = float(value)
    return found | {"protocols": protocols}


def _costs(line: Mapping[str, str]) -> dict[str, Any]:
    return {name: _number(line[f"cost {name}"]) for name in COSTS} | {
        name: line[f"cost {name}"] for name in ("machine", "commit")
    }


def _number(text: str) -> float | int | None:
    if text == "":
        return None
    value = float(text)
    return int(value) if math.isfinite(value) and value == int(value) and "." not in text else value


def _write_queries(path: Path, runs: Mapping[tuple[str, int], BoardRun]) -> None:
    """Write the metrics of each query: of every protocol and metric the distinct values, and codes (R, Q) into them.

    Metrics of few right images have few distinct values, so that codes take a tenth of the room of the values.
    """
    arrays: dict[str, np.ndarray] = {
        "rows": np.array([row for row, _ in runs]),
        "seeds": np.array([seed for _, seed in runs], dtype=np.int64),
    }
    first = next(iter(runs.values()))
    for protocol, columns in first.queries.items():
        for name, own in columns.items():
            if not all(name in run.queries[protocol] for run in runs.values()):  # of another version
                continue
            if own.dtype.kind != "f":
                arrays[f"{protocol}/{name}"] = own
                continue
            table = np.stack([run.queries[protocol][name] for run in runs.values()])
            values, codes = np.unique(table, return_inverse=True)
            small = next(kind for kind in (np.uint8, np.uint16, np.uint32) if len(values) <= np.iinfo(kind).max)
            arrays[f"{protocol}/{name}/values"] = values
            arrays[f"{protocol}/{name}/codes"] = codes.reshape(table.shape).astype(small)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _read_queries(path: Path) -> dict[tuple[str, int], QueryMetrics]:
    """Read what `_write_queries` wrote, by row and seed."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    keys = list(zip(arrays["rows"].tolist(), arrays["seeds"].tolist(), strict=True))
    found: dict[tuple[str, int], QueryMetrics] = {key: {} for key in keys}
    for name, values in arrays.items():
        protocol, _, column = name.partition("/")
        if not column or name.endswith("/codes"):
            continue
        for number, key in enumerate(keys):
            own = found[key].setdefault(protocol, {})
            if name.endswith("/values"):
                own[column.removesuffix("/values")] = values[arrays[f"{protocol}/{column[:-7]}/codes"][number]]
            else:
                own[column] = values
    return found
