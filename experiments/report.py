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
from typing import TYPE_CHECKING

from experiments.command import guarded, page_path

if TYPE_CHECKING:
    from locore.datasets import Benchmark


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
    from experiments.configuration import built
    from experiments.data import Data
    from experiments.experiment import RANKINGS
    from locore.files import write_text
    from locore.report.page import Run, page

    path = page_path(options.out, "--out")
    if options.queries < 1:
        raise ValueError("--queries is 1 or more.")
    folders = [folder.resolve() for folder in options.runs]
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError("Two run folders have the same name, and runs are named by it; rename one.")
    runs: dict[str, list[Run]] = {}
    benchmarks: dict[str, Benchmark] = {}
    for folder in folders:
        missing = [name for name in ("metrics.json", RANKINGS, "config.gin") if not (folder / name).exists()]
        if missing:
            raise ValueError(f"'{folder}' has no {missing[0]}; give folders of finished runs of experiments.run.")
        run = Run.read(folder, folder / RANKINGS)
        data, _ = built(Data, [str(folder / "config.gin")], [], 0)
        key = f"{data.benchmark} {json.dumps(data.settings, sort_keys=True)}"
        if key not in benchmarks:
            benchmarks[key] = data.load()
        if run.metrics.get("images") not in (None, benchmarks[key].fingerprint):
            raise ValueError(f"The images of '{folder}' have changed since; run it again.")
        runs.setdefault(key, []).append(run)
    try:
        text = page([(benchmarks[key], found) for key, found in runs.items()], options.queries)
    except (LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"A run's files do not belong together ({error!r}); let these runs end again.") from error
    write_text(path, text)
    print(f"{path} shows {len(options.runs)} runs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
