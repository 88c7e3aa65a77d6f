"""Compare re-rankers:  python -m experiments.compare gin/mamba.gin gin/rwkv.gin --seeds 0 1 --results results/glyphs

Runs every gin file with every seed (what is not trained with the first one), each in a process of its own, and makes a
table (Markdown, CSV, LaTeX), the differences of any two rows (differences.csv) and a picture. A run whose metrics are
in the results folder already, from the same configuration, is not run again; one that fails is named in the table and
does not end the others.

  --on gin/comparison/*.gin  a table for each of these, in a folder of its name below --results (default: results)
  --costs                    let all rows re-rank a random list in turn, in processes that are alive at once, for what
                             they cost and a picture of quality against cost (pareto.png)
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command import guarded, seed_number, sentence
from experiments.configuration import same_run
from experiments.costs import side_by_side
from experiments.experiment import Experiment, prepare
from locore import files
from locore.report import comparison

DIFFERENCES = "differences.csv"


@dataclass(frozen=True)
class Row:
    """A gin file with a seed."""

    file: str
    experiment: Experiment
    config: str


@dataclass(frozen=True)
class Board:
    """Rows that re-rank the same shortlists.

    Attributes:
        results: the folder. mixed: gin files behind each row's own. rows: by name and seed.
    """

    results: Path
    mixed: list[str]
    rows: dict[tuple[str, int], Row]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(
        "experiments.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="FILE", help="gin files, one a row of the table")
    parser.add_argument("--gin", action="append", default=[], metavar="FILE", help="mixed into every row; repeatable")
    parser.add_argument("--on", nargs="+", default=[], metavar="FILE", help="gin files, one a table; mixed in last")
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="for every run")
    parser.add_argument("--finished", action="store_true", help="run nothing: a table of what the results folder has")
    parser.add_argument("--costs", action="store_true", help="time the rows side by side when all have been run")
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="CSV of numbers to stand beside rows: table, row, and columns"
    )
    parser.add_argument(
        "--results", type=Path, help="tables, and metrics of runs and queries (default: results/<benchmark>)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders, with their weights")
    options = parser.parse_args(arguments)
    return guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Start experiments.compare by itself: each of its runs is a process of its own.")
    for what, given in (("rows", options.rows), ("tables", options.on)):
        if len({Path(file).stem for file in given}) < len(given):
            raise ValueError(f"Two gin files have the same name, and {what} are named by it; rename one.")
    # All configurations are read before the first run, so that a typing error costs no hour.
    below = options.results or Path("results")
    boards = [_planned(options, [*options.gin, file], below / Path(file).stem) for file in options.on]
    boards = boards or [_planned(options, options.gin, options.results)]
    beside = [
        comparison.read_published(options.published, b.results.name) if options.published else None for b in boards
    ]
    measured = [_run_all(board, options) for board in boards]
    points = {}
    for board, (finished, failed), published in zip(boards, measured, beside, strict=True):
        costs = _costs(board, finished, options) if options.costs else None
        _write(board, finished, failed, costs, published)
        if costs:
            points[board.results.name] = (finished, costs["rows"])
        print((board.results / "table.md").read_text())
    if points:
        comparison.pareto((below if options.on else boards[0].results) / "pareto.png", points)
    return 1 if any(failed for _, failed in measured) or (options.costs and len(points) < len(boards)) else 0


def _planned(options: argparse.Namespace, mixed: list[str], results: Path | None) -> Board:
    """The rows of a table.

    Raises:
        ValueError: a configuration is wrong, or two of them re-rank other shortlists than each other.
    """
    rows: dict[tuple[str, int], Row] = {}
    for file in options.rows:
        for seed in options.seeds:
            row = Row(file, *prepare([file, *mixed], options.set, seed))
            if row.experiment.trains or seed == options.seeds[0]:
                rows[Path(file).stem, seed] = row
    (first_name, _), first = next(iter(rows.items()))
    for (name, _), row in rows.items():
        ours, theirs = (each.experiment.searched for each in (row, first))
        for what in ours | theirs:
            one, other = ours.get(what), theirs.get(what)
            if one != other:
                raise ValueError(
                    f"'{name}' and '{first_name}' differ in {what}: {one} and {other}; rows of one table re-rank the "
                    "same shortlists."
                )
    return Board(results or Path("results") / first.experiment.data.benchmark, mixed, rows)


def _run_all(board: Board, options: argparse.Namespace) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """-> metrics by row, of each of its seeds; and what the others failed with."""
    finished: dict[str, list[dict]] = defaultdict(list)
    failed: dict[str, str] = {}
    for (name, seed), row in board.rows.items():
        result = board.results / f"{name}-seed{seed}.json"
        metrics = _known(result, row.config)
        if metrics is None and options.finished:
            print(f"{name}, seed {seed}: left out, '{result}' is no result of it.", file=sys.stderr)
            continue
        if metrics is None:
            folder = options.runs / f"{name}-seed{seed}-{hashlib.sha256(row.config.encode()).hexdigest()[:8]}"
            command = [sys.executable, "-m", "experiments.run", "--seed", str(seed), "--out", str(folder)]
            command += [part for file in (row.file, *board.mixed) for part in ("--gin", file)]
            command += [part for line in options.set for part in ("--set", line)]
            print(f"{name}, seed {seed}: {shlex.join(command)}", file=sys.stderr)
            error = _run(command)
            if error:
                failed[f"{name}, seed {seed}"] = error
                continue
            metrics = json.loads((folder / "metrics.json").read_text())
            files.write_text(result.with_suffix(".csv"), (folder / "queries.csv").read_text())
            files.write_json(result, metrics)
        finished[name].append(metrics)
    if options.finished and not finished:
        raise ValueError(f"'{board.results}' has no result of these rows; leave --finished out to run them.")
    return finished, failed


def _costs(board: Board, finished: dict[str, list[dict]], options: argparse.Namespace) -> dict[str, Any] | None:
    """What each row costs that has a result; None where that cannot be measured, which is said."""
    rows = {
        name: ([row.file, *board.mixed], row.experiment) for (name, _), row in board.rows.items() if name in finished
    }
    if not rows:
        return None
    try:
        found = side_by_side(rows, options.set)
        files.write_json(board.results / "costs.json", found)
    except (ValueError, OSError) as error:
        print(f"The costs of '{board.results}' were not measured: {sentence(error)}", file=sys.stderr)
        return None
    return found


def _write(
    board: Board,
    finished: dict[str, list[dict]],
    failed: dict[str, str],
    costs: dict[str, Any] | None,
    published: dict[str, dict[str, str]] | None,
) -> None:
    """The tables of a board and its picture."""
    results = board.results
    command_line = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    rows_costs = costs["rows"] if costs else None
    tables = {p: comparison.rows(finished, failed, p, rows_costs, published) for p in comparison.protocols(finished)}
    per_query = {
        name: [_queries(results / f"{name}-seed{run['seed']}.csv") for run in runs] for name, runs in finished.items()
    }
    text, differences = [], {}
    for protocol, rows in tables.items():
        heading = f"**{protocol}**\n\n" if len(tables) > 1 else ""
        text.append(heading + comparison.markdown(rows))
        if len(finished) > 1:
            shown = comparison.columns(finished, protocol)
            differences[protocol] = comparison.differences(per_query, shown, protocol)
            text.append(comparison.of_the_first(differences[protocol], DIFFERENCES))
    if finished:
        text.append(comparison.made(finished, command_line, costs))
        comparison.picture(results / "table.png", finished)
    files.write_text(results / "table.md", "\n".join(part for part in text if part))
    files.write_text(results / "table.csv", comparison.csv_text(tables))
    if differences:
        files.write_text(results / DIFFERENCES, comparison.csv_text(differences))
    files.write_text(
        results / "table.tex", "\n\n".join(f"% {p}\n{comparison.latex(t)}" for p, t in tables.items()) + "\n"
    )


def _known(result: Path, config: str) -> dict | None:
    """The metrics of a finished run of this configuration, if the results folder has them."""
    try:
        metrics = json.loads(result.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    path = result.with_suffix(".csv")
    if not same_run(config, metrics.get("config", "")) or not path.exists():
        return None
    asked = Counter({protocol: measured["queries"] for protocol, measured in metrics["protocols"].items()})
    # Another count is an older version's, or a damaged file's.
    return metrics if Counter(query.get("protocol") for query in _queries(path)) == asked else None


def _queries(path: Path) -> list[dict[str, str]]:
    """The metrics of each query, as `experiments.run` left them."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _run(command: list[str]) -> str | None:
    """Run it with its progress shown; the last line that it wrote to stderr if it failed."""
    # Behind a pipe, rich has to be told that a person is watching, or its bars stand still until they are full.
    watched = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"} if sys.stderr.isatty() else {}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, **watched}
    )
    last, line = b"", bytearray()
    assert process.stderr is not None
    while byte := process.stderr.read(1):
        sys.stderr.buffer.write(byte)
        sys.stderr.buffer.flush()
        if byte in b"\r\n":
            last = bytes(line).strip() or last
            line.clear()
        else:
            line += byte
    last = bytes(line).strip() or last
    return None if process.wait() == 0 else f"exit status {process.returncode}, {last.decode(errors='replace')}"


if __name__ == "__main__":
    sys.exit(main())
