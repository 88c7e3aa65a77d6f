"""Make one page of runs:  python -m experiments.report runs/mamba runs/pairwise --out report.html

Reads finished runs of experiments.run and leaves one HTML file that opens from disk, without a network: a table that
sorts, quality against cost, recall curves, a query's metric under one run against another's, and every query with its
list before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.command import guarded


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of experiments.run")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--queries", type=int, default=1000, help="shown of each protocol at most, drawn with seed 0")
    options = parser.parse_args(arguments)
    return guarded(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    from experiments.experiment import RANKINGS, prepare
    from locore.files import write_text
    from locore.report.page import Run, page

    if options.queries < 1:
        raise ValueError("--queries is 1 or more.")
    if len({run.name for run in options.runs}) < len(options.runs):
        raise ValueError("Two run folders have the same name, and runs are named by it.")
    runs: dict[str, list[Run]] = {}
    benchmarks: dict[str, Any] = {}
    for folder in options.runs:
        missing = [name for name in ("metrics.json", RANKINGS, "config.gin") if not (folder / name).exists()]
        if missing:
            raise ValueError(f"'{folder}' has no {missing[0]}; give folders of finished runs of experiments.run.")
        experiment, _ = prepare([str(folder / "config.gin")], ["Experiment.reranker = None"], 0)
        key = f"{experiment.data.benchmark} {json.dumps(experiment.data.settings, sort_keys=True)}"
        if key not in benchmarks:
            benchmarks[key] = experiment.data.load()
        runs.setdefault(key, []).append(Run.read(folder, folder / RANKINGS))
    write_text(options.out, page([(benchmarks[key], found) for key, found in runs.items()], options.queries))
    print(f"{options.out} shows {len(options.runs)} runs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
