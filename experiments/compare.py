"""Compare re-rankers:  python -m experiments.compare gin/mamba.gin gin/rwkv.gin --seeds 0 1 --results results/glyphs

Runs every row with every seed (what is not trained with the first one), each in a process of its own, and makes a table
(Markdown, CSV) with the differences to the first row, and a picture. A row is a gin file, or several joined by "+":
gin/longformer.gin+gin/rate/5e-4.gin. A row may also be the folder of a finished run: its re-ranker is evaluated as it
is, so that --on shows how what was learned on one board does on others. A run that the results folder has already, from
the same configuration, is not run again; one that fails is named in the table and does not end the others. The folder
keeps every run in runs.csv and the metrics of each query in queries.npz; --finished makes the tables again from these
two files, to the last digit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments._cli import LazyModule, command_parser, guarded, seed_number, sentence, typed_command

build = LazyModule("locore.pipeline.build")
config = LazyModule("experiments._config")
costs_module = LazyModule("experiments._profiling.costs")
differences = LazyModule("locore.report.differences")
files = LazyModule("locore.utils.files")
pareto = LazyModule("locore.report.pareto")
pictures = LazyModule("locore.report.pictures")
results_module = LazyModule("locore.report.results")
settings = LazyModule("locore.pipeline.settings")
tables = LazyModule("locore.report.tables")
weights_file = LazyModule("locore.reranking.weights_file")

EXAMPLES = (
    "gin/mamba.gin gin/rwkv.gin gin/peers/chamfer.gin --on gin/boards/*.gin --seeds 0 1 --costs --results results",
    "--finished --results results/glyphs --differences",
)


@dataclass(frozen=True)
class Row:
    """A row of a table with one seed: its gin files and lines, what they make, and the hash of the configuration."""

    files: list[str]
    lines: list[str]
    experiment: Any
    config: str


@dataclass
class Board:
    """Rows that re-rank the same shortlists.

    Attributes:
        results: what its folder has.
        mixed: gin files that are mixed into every row.
        rows: by name and seed; empty with --finished.
        failed: error of each run that failed.
    """

    results: Any
    mixed: list[str]
    rows: dict[tuple[str, int], Row]
    failed: dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if a run failed."""
    parser = command_parser("compare", __doc__, EXAMPLES)
    group = parser.add_argument_group("what is compared")
    group.add_argument("rows", nargs="*", metavar="FILE[+FILE…]", help="gin files or run folders, one row each")
    group.add_argument("--gin", action="append", default=[], metavar="FILE", help="mixed into every row; repeatable")
    group.add_argument("--on", nargs="+", default=[], metavar="FILE", help="boards: a table for each, mixed in last")
    group.add_argument("--seeds", nargs="+", type=seed_number, default=[0])
    group.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="for every run")
    group = parser.add_argument_group("how it is run")
    group.add_argument(
        "--finished", action="store_true", help="run nothing: make tables of what the results folder has"
    )
    group.add_argument(
        "--costs",
        action="store_true",
        help="let all rows re-rank a random list in turn, in processes that are alive at once, for what they cost\n"
        "and a picture of quality against cost (pareto.png)",
    )
    group.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders (default: runs/compare)")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--results", type=Path, help="folder of the board (default: results/<benchmark>); with --on, of all"
    )
    group.add_argument("--paper", type=Path, metavar="FILE", help="CSV of a paper's numbers: table, row, and columns")
    group.add_argument("--differences", action="store_true", help="print the differences of all pairs of rows as CSV")
    group.add_argument("--latex", action="store_true", help="also write table.tex")
    options = parser.parse_args(arguments)
    options.command = typed_command("compare", arguments)
    return guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Start experiments.compare in one process: each of its runs is a process of its own.")
    if not options.rows and not options.finished:
        raise ValueError("Give a gin file for each row, or --finished.")
    for what, names in (("rows", [_name(row) for row in options.rows]), ("boards", [Path(f).stem for f in options.on])):
        if len(set(names)) < len(names):
            raise ValueError(f"Two gin files have the same name, and {what} are named by it; rename one.")
    # All configurations are read before the first run, so that a typing error costs no hour.
    below = options.results or Path("results")
    plan = _finished_board if options.finished else _planned
    boards = [plan(options, [*options.gin, file], below / Path(file).stem) for file in options.on]
    boards = boards or [plan(options, options.gin, options.results)]
    paper = [tables.read_reference(options.paper, b.results.folder.name) if options.paper else None for b in boards]
    for board in boards:
        _run_all(board, options)
        if options.costs:
            _measure_costs(board)
    points = {}
    for board, reference in zip(boards, paper, strict=True):
        finished = board.results.finished([_name(row) for row in options.rows] or None)
        _write(board, finished, reference, options)
        known = {name: board.results.costs[name] for name in finished if name in board.results.costs}
        if known:
            metrics = {name: [run.metrics for run in runs] for name, runs in finished.items() if name in known}
            points[board.results.folder.name] = (metrics, known)
        if not options.differences:
            print((board.results.folder / "table.md").read_text())
    if points and (options.costs or options.on):
        pareto.pareto((below if options.on else boards[0].results.folder) / "pareto.png", points)
    measured = not options.costs or len(points) == len(boards)
    return 0 if measured and not any(board.failed for board in boards) else 1


def _name(row: str) -> str:
    """Return the name of a row: the names of its gin files, or of a run folder."""
    if _is_run(row):
        return Path(row).resolve().name
    return "+".join(Path(file).stem if file.endswith(".gin") else file for file in row.split("+"))


def _is_run(row: str) -> bool:
    return (Path(row) / weights_file.WEIGHTS).is_file()


def _files_and_lines(row: str, mixed: list[str]) -> tuple[list[str], list[str]]:
    """Return the gin files of a row, and the lines that make a run folder one."""
    if not _is_run(row):
        return [*row.split("+"), *mixed], []
    if not mixed:
        raise ValueError(f"'{row}' is a run folder; say by --on or --gin on which data it is evaluated.")
    spec = weights_file.read(Path(row) / weights_file.WEIGHTS).spec or {}
    method = spec.get("method", settings.LISTWISE)
    # The images that would choose an ensemble may be those that it was trained on.
    alone = "Reranking.ensemble = False"
    return mixed, [f"Model.method = '{method}'", f"Model.checkpoint = '{Path(row).resolve()}'", alone]


def _planned(options: argparse.Namespace, mixed: list[str], folder: Path | None) -> Board:
    """Read the rows of a board.

    Raises:
        ValueError: a configuration is wrong, or two rows re-rank different shortlists.
    """
    rows: dict[tuple[str, int], Row] = {}
    for given in options.rows:
        own, of_a_run = _files_and_lines(given, mixed)
        lines = [*options.set, *of_a_run]
        for seed in options.seeds:
            experiment, text = config.read_experiment(own, lines, seed)
            if experiment.trains or seed == options.seeds[0]:
                rows[_name(given), seed] = Row(own, lines, experiment, _hash(text))
    (first_name, _), first = next(iter(rows.items()))
    wanted = build.shortlist_settings(first.experiment)
    for (name, _), row in rows.items():
        ours = build.shortlist_settings(row.experiment)
        for what in ours | wanted:
            one, other = ours.get(what), wanted.get(what)
            if one != other:
                raise ValueError(
                    f"'{name}' and '{first_name}' differ in {what}: {one} and {other}; rows of one table re-rank the "
                    "same shortlists."
                )
    folder = folder or Path("results") / first.experiment.data.benchmark
    return Board(results_module.BoardResults.read(folder), mixed, rows, {})


def _finished_board(options: argparse.Namespace, mixed: list[str], folder: Path | None) -> Board:
    """Read what the results folder of a board has."""
    if folder is None:
        raise ValueError("--finished needs --results, the folder of a board, or --on with boards.")
    results = results_module.BoardResults.read(folder)
    names = [_name(row) for row in options.rows]
    for name in names:
        if not results.finished([name]):
            print(f"{name}: left out, '{folder}' has no run of it.", file=sys.stderr)
    if not results.finished(names or None):
        raise ValueError(f"'{folder}' has no run of these rows; leave --finished out to run them.")
    return Board(results, mixed, {}, {})


def _hash(text: str) -> str:
    """Return the hash of a configuration: of its seed, weights and settings that differ from the defaults."""
    return hashlib.sha256("\n".join(config.identifying_lines(text)).encode()).hexdigest()[:12]


def _run_all(board: Board, options: argparse.Namespace) -> None:
    """Run what the results folder does not have, and add it there."""
    for (name, seed), row in board.rows.items():
        known = board.results.runs.get((name, seed))
        if known and known.config == row.config:
            continue
        folder = options.runs / f"{name}-seed{seed}-{row.config[:8]}"
        command = [sys.executable, "-m", "experiments.run", "--seed", str(seed), "--out", str(folder)]
        command += [part for file in row.files for part in ("--gin", file)]
        command += [part for line in row.lines for part in ("--set", line)]
        print(f"{name}, seed {seed}: {shlex.join(command)}", file=sys.stderr)
        error = _run(command)
        if error:
            board.failed[f"{name}, seed {seed}"] = error
            continue
        metrics = json.loads((folder / "metrics.json").read_text())
        board.results.add(name, row.config, metrics, (folder / "queries.csv").read_text())


def _measure_costs(board: Board) -> None:
    """Measure what a list costs under each row that has a result; report where that is not possible."""
    rows = {name: row for (name, _), row in board.rows.items() if board.results.finished([name])}
    if not rows:
        return
    try:
        made = {name: (row.files, row.lines, row.experiment) for name, row in rows.items()}
        board.results.costs |= costs_module.side_by_side(made)
        board.results.write()
    except (ValueError, OSError) as error:
        print(f"The costs of '{board.results.folder}' were not measured: {sentence(error)}", file=sys.stderr)


def _write(board: Board, finished: dict[str, list[Any]], reference: Any, options: argparse.Namespace) -> None:
    """Write the tables of a board and its picture."""
    folder, costs = board.results.folder, {n: c for n, c in board.results.costs.items() if n in finished}
    metrics = {name: [run.metrics for run in runs] for name, runs in finished.items()}
    made, text, pairs = {}, [], {}
    for protocol in tables.protocols(metrics):
        front = pareto.front_names(metrics, costs, protocol) if costs else set()
        made[protocol] = tables.rows(metrics, board.failed, protocol, costs, front, reference)
        heading = f"**{protocol}**\n\n" if len(tables.protocols(metrics)) > 1 else ""
        text.append(heading + tables.markdown(made[protocol]))
        if len(finished) > 1:
            pairs[protocol] = differences.differences(
                finished, tables.columns(metrics, protocol), protocol, options.differences
            )
            text.append(differences.of_the_first(pairs[protocol]))
    if finished:
        text.append(tables.made(metrics, options.command, costs))
        pictures.comparison(folder / "table.png", metrics)
    files.write_text(folder / "table.md", "\n".join(part for part in text if part))
    files.write_text(folder / "table.csv", tables.csv_text(made))
    if options.differences:
        print(tables.csv_text(pairs), end="")
    if options.latex:
        latex = "\n\n".join(f"% {protocol}\n{tables.latex(rows)}" for protocol, rows in made.items())
        files.write_text(folder / "table.tex", latex + "\n")


def _run(command: list[str]) -> str | None:
    """Run a command with its progress shown; returns the last line of its stderr if it failed."""
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
