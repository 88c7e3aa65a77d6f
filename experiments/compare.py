"""Compare re-rankers:  python -m experiments.compare gin/mamba.gin gin/rwkv.gin --seeds 0 1 --results results/glyphs

Runs every row with every seed (what is not trained with the first one), each in a process of its own, and makes a table
(Markdown, CSV) with the differences to the first row, and a picture. A row is a gin file, or several joined by "+":
gin/longformer.gin+gin/rate/5e-4.gin. A row may also be the folder of a finished run: its re-ranker is evaluated as it
is, so that --on shows how what was learned on one board does on others. A run that the results folder has already, from
the same configuration, is not run again; one that fails is named in the table and does not end the others. The folder
keeps every run in runs.csv and the metrics of each query in queries.npz; --finished makes the tables again from these
two files, to the last digit.

gin/protocol/fair.gin, --rates and three seeds give every learned row the same chances; --final then measures the
finished rows once on queries that nobody has looked at.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from experiments._cli import (
    LazyModule,
    command_parser,
    count,
    guarded,
    rate_text,
    seed_number,
    sentence,
    typed_command,
)

board_rows = LazyModule("experiments._board")
costs_module = LazyModule("experiments._profiling.costs")
curves = LazyModule("locore.report.curves")
differences = LazyModule("locore.report.differences")
files = LazyModule("locore.utils.files")
pareto = LazyModule("locore.report.pareto")
pictures = LazyModule("locore.report.pictures")
rates = LazyModule("experiments._rates")
tables = LazyModule("locore.report.tables")

EXAMPLES = (
    "gin/mamba.gin gin/rwkv.gin gin/peers/chamfer.gin --on gin/boards/*.gin --seeds 0 1 --costs --results results",
    "gin/mamba.gin gin/pairwise.gin --gin gin/protocol/top24.gin --gin gin/protocol/fair.gin --seeds 0 1 2 "
    "--rates 1e-4 3e-4 1e-3 2e-3 --final gin/protocol/final.gin --results results/glyphs-fair",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if a run failed."""
    parser = command_parser("compare", __doc__, EXAMPLES)
    group = parser.add_argument_group("what is compared")
    group.add_argument("rows", nargs="*", metavar="FILE[+FILE…]", help="gin files or run folders, one row each")
    group.add_argument("--gin", action="append", default=[], metavar="FILE", help="mixed into every row; repeatable")
    group.add_argument("--on", nargs="+", default=[], metavar="FILE", help="boards: a table for each, mixed in last")
    group.add_argument("--seeds", nargs="+", type=seed_number, default=[0])
    group.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="for every run")
    group.add_argument(
        "--rates", nargs="+", type=rate_text, default=[], metavar="RATE",
        help="learning rates: each learned row is trained for a quarter of its steps at each of them, with the first\n"
        "seed, and gets the one with the highest validation (kept in rates.csv)",
    )  # fmt: skip
    group.add_argument(
        "--final", metavar="FILE",
        help="at the end, measure the finished rows with this gin file mixed in (gin/protocol/final.gin), once; its\n"
        "tables are in a folder of their own, <board>-final",
    )  # fmt: skip
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
    group.add_argument(
        "--jobs", type=count, default=1, metavar="N",
        help="runs at a time, which share the cores and the GPUs and write logs beside their folders (default 1)",
    )  # fmt: skip
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends its runs too, as Ctrl-C does
    return guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Start experiments.compare in one process: each of its runs is a process of its own.")
    if not options.rows and not options.finished:
        raise ValueError("Give a gin file for each row, or --finished.")
    if options.finished and (options.rates or options.final):
        raise ValueError("--finished runs nothing; leave --rates and --final out.")
    row_names = [board_rows.row_name(row) for row in options.rows]
    for what, names in (
        ("rows", row_names),
        ("boards", [Path(f).stem for f in options.on]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"Two gin files have the same name, and {what} are named by it; rename one.")
    # All configurations are read before the first run, so that a typing error costs no hour.
    below = options.results or Path("results")
    plan = board_rows.finished_board if options.finished else board_rows.planned
    boards = [plan(options, [*options.gin, file], below / Path(file).stem) for file in options.on]
    boards = boards or [plan(options, options.gin, options.results)]
    paper = [tables.read_reference(options.paper, b.results.folder.name) if options.paper else None for b in boards]
    for board in boards:
        board_rows.run_all(board, options)
        if options.costs:
            _measure_costs(board)
    measured = not options.costs or all(board.results.costs for board in boards)
    if options.final:
        boards += [final for board in boards if (final := board_rows.final_board(board, options))]
        paper += [None] * (len(boards) - len(paper))
    points = {}
    for board, reference in zip(boards, paper, strict=True):
        finished = board.results.finished(row_names or None)
        _write(board, finished, reference, options)
        known = {name: board.results.costs[name] for name in finished if name in board.results.costs}
        if known:
            metrics = {name: [run.metrics for run in runs] for name, runs in finished.items() if name in known}
            points[board.results.folder.name] = (metrics, known)
        if not options.differences:
            print((board.results.folder / "table.md").read_text())
    if points and (options.costs or options.on):
        pareto.pareto((below if options.on else boards[0].results.folder) / "pareto.png", points)
    return 0 if measured and not any(board.failed for board in boards) else 1


def _measure_costs(board: Any) -> None:
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


def _write(board: Any, finished: dict[str, list[Any]], reference: Any, options: argparse.Namespace) -> None:
    """Write the tables of a board and its picture."""
    folder, costs = board.results.folder, {n: c for n, c in board.results.costs.items() if n in finished}
    metrics = {name: [run.metrics for run in runs] for name, runs in finished.items()}
    made, text, pairs = {}, [board.note], {}
    gains = {
        (protocol, metric): differences.gains(finished, metric, protocol)
        for protocol in tables.protocols(metrics)
        for metric in (tables.columns(metrics, protocol) if finished else ())
    }
    for protocol in tables.protocols(metrics):
        front = pareto.front_names(metrics, costs, protocol) if costs else set()
        shown = tables.columns(metrics, protocol) if finished else []
        main = gains.get((protocol, shown[-1])) if finished else None
        made[protocol] = tables.rows(metrics, board.failed, protocol, costs, front, reference, main)
        heading = f"**{protocol}**\n\n" if len(tables.protocols(metrics)) > 1 else ""
        text.append(heading + tables.markdown(made[protocol]))
        if len(finished) > 1:
            pairs[protocol] = differences.differences(finished, shown, protocol, options.differences)
            text.append(differences.of_the_first(pairs[protocol]))
            text.append(differences.not_separated(finished, shown[-1], protocol))
    if trials := rates.read(folder):
        text.append(rates.described(trials))
    text.append(curves.at_equal_time(folder, finished))
    if finished:
        text.append(tables.made(metrics, options.command, costs))
        pictures.comparison(folder / "table.png", metrics, gains)
    files.write_text(folder / "table.md", "\n".join(part for part in text if part))
    files.write_text(folder / "table.csv", tables.csv_text(made))
    if options.differences:
        print(tables.csv_text(pairs), end="")
    if options.latex:
        latex = "\n\n".join(f"% {protocol}\n{tables.latex(rows)}" for protocol, rows in made.items())
        files.write_text(folder / "table.tex", latex + "\n")


if __name__ == "__main__":
    sys.exit(main())
