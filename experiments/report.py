"""Make one page of runs:  python -m experiments.report runs/mamba runs/pairwise --out report.html

Reads finished runs of experiments.run and leaves one HTML file that opens from disk, without a network: a table that
sorts, quality against cost, recall curves, a query's metric under one run against another's, and every query with its
list before and after; of some queries of a list-wise run also which tokens moved a candidate's score, and what the
probes of runs found.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import guarded, page_path, run_folders

if TYPE_CHECKING:
    from locore.datasets import Benchmark
    from locore.report.page import Run


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of experiments.run")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument(
        "--explained",
        type=int,
        default=20,
        metavar="N",
        help="queries of each list-wise run, those that gain most, of which a click shows what moved a score\n"
        "(default 20; 0 = none)",
    )
    parser.add_argument(
        "--probes", type=Path, metavar="FOLDER", help="also show what experiments.probe left in this folder"
    )
    parser.add_argument("--queries", type=int, default=1000, help="shown of each protocol at most, drawn with seed 0")
    options = parser.parse_args(arguments)
    return guarded(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    from experiments.configuration import built
    from experiments.data import Data
    from experiments.running import RANKINGS
    from locore.files import write_text
    from locore.report.page import Run, page
    from locore.report.probes import Probes

    path = page_path(options.out, "--out")
    if options.queries < 1 or options.explained < 0:
        raise ValueError("--queries is 1 or more, --explained 0 or more.")
    folders = run_folders(options.runs)
    probes = Probes.read(options.probes) if options.probes else None
    runs: dict[str, list[tuple[Path, Run]]] = {}
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
        runs.setdefault(key, []).append((folder, run))
    try:
        groups = [
            (benchmark, [_explained(folder, run, benchmark, options) for folder, run in runs[key]])
            for key, benchmark in benchmarks.items()
        ]
        text = page(groups, options.queries, probes)
    except (LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"A run's files do not belong together ({error!r}); let these runs end again.") from error
    write_text(path, text)
    print(f"{path} shows {len(options.runs)} runs.")
    return 0


def _explained(folder: Path, run: Run, benchmark: Benchmark, options: argparse.Namespace) -> Run:
    """The run with what moved the scores of the queries that gain most in the first protocol, where it can be said."""
    from experiments.experiment import LISTWISE, prepare
    from locore import checkpoints
    from locore.evaluation.explain import explain
    from locore.report.page import SHOWN, drawn
    from locore.reranking.listwise import WEIGHTS, ListwiseReranker

    if not options.explained or not (folder / WEIGHTS).exists():
        return run
    try:
        experiment, _ = prepare([str(folder / "config.gin")], ["Experiment.language_model = None"], 0)
    except ValueError:  # a file that it was trained with has gone, which the rest of the page does without
        return run
    if experiment.method != LISTWISE or experiment.files or experiment.embedder_rate:
        return run
    model = checkpoints.load(folder).to(experiment.device)
    assert isinstance(model, ListwiseReranker)
    protocol, measured = next(iter(run.metrics["protocols"].items()))
    main = measured["shown"][-1]
    rows = [row for row in run.queries if row["protocol"] == protocol]
    gains = [float(row[f"reranked {main}"]) - float(row[f"global {main}"]) for row in rows]
    chosen = sorted(drawn(len(rows), options.queries), key=lambda row: -gains[row])[: options.explained]
    queries, gallery = (experiment.describe(images)[0] for images in (benchmark.queries, benchmark.gallery))
    reads = experiment.pass_size, experiment.device
    return replace(run, explained=explain(model, queries, gallery, run.of(protocol), chosen, SHOWN, *reads))


if __name__ == "__main__":
    sys.exit(main())
