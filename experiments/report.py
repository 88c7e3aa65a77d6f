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
from typing import Any

from experiments._cli import LazyModule, command_parser, guarded, page_path, run_folders

attribution = LazyModule("locore.probes.attribution")
build = LazyModule("locore.pipeline.build")
config = LazyModule("experiments._config")
distributed = LazyModule("locore.utils.distributed")
files = LazyModule("locore.utils.files")
listwise = LazyModule("locore.reranking.listwise")
native = LazyModule("locore.checkpoints.native")
outputs = LazyModule("locore.pipeline.outputs")
probes = LazyModule("locore.report.probes")
run_page = LazyModule("locore.report.run_page")
settings = LazyModule("locore.pipeline.settings")

EXAMPLES = (
    "runs/superglobal runs/chamfer --out report.html",
    "runs/mamba runs/rwkv --probes runs/probe --explained 50",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command_parser("report", __doc__, EXAMPLES)
    group = parser.add_argument_group("what is shown")
    group.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of experiments.run")
    group.add_argument("--queries", type=int, default=1000, help="of each protocol at most, drawn with seed 0")
    group.add_argument(
        "--explained",
        type=int,
        default=20,
        metavar="N",
        help="queries of each list-wise run, those that gain most, of which a click shows what moved a score\n"
        "(default 20; 0 = none)",
    )
    group.add_argument(
        "--probes", type=Path, metavar="FOLDER", help="also show what experiments.probe left in this folder"
    )
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, default=Path("report.html"), help="page (default: report.html)")
    options = parser.parse_args(arguments)
    return guarded(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    path = page_path(options.out, "--out")
    if options.queries < 1 or options.explained < 0:
        raise ValueError("--queries must be 1 or more, and --explained 0 or more.")
    folders = run_folders(options.runs)
    found = probes.Probes.read(options.probes) if options.probes else None
    runs: dict[str, list[tuple[Path, Any]]] = {}
    benchmarks: dict[str, Any] = {}
    for folder in folders:
        missing = [name for name in ("metrics.json", outputs.RANKINGS, "config.gin") if not (folder / name).exists()]
        if missing:
            raise ValueError(f"'{folder}' has no {missing[0]}; give folders of finished runs of experiments.run.")
        run = run_page.Run.read(folder, folder / outputs.RANKINGS)
        data, _ = config.read(config.data, [str(folder / "config.gin")], [], 0)
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
        text = run_page.page(groups, options.queries, found)
    except (LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"The files of a run do not belong together ({error!r}); run these again.") from error
    files.write_text(path, text)
    print(f"{path} shows {len(options.runs)} runs.")
    return 0


def _explained(folder: Path, run: Any, benchmark: Any, options: argparse.Namespace) -> Any:
    """Add to a list-wise run what moved the scores of the queries that gain most in the first protocol."""
    if not options.explained or not (folder / listwise.WEIGHTS).exists():
        return run
    try:
        experiment, _ = config.read_experiment([str(folder / "config.gin")], ["Model.language_model = None"], 0)
    except ValueError:  # a file that it was trained with is gone; the rest of the page does without
        return run
    if not experiment.model.listwise or experiment.files or experiment.embedder_lr_scale:
        return run
    model = native.load(folder).to(distributed.device())
    protocol, measured = next(iter(run.metrics["protocols"].items()))
    main_metric = measured["shown"][-1]
    rows = [row for row in run.queries if row["protocol"] == protocol]
    gains = [float(row[f"reranked {main_metric}"]) - float(row[f"global {main_metric}"]) for row in rows]
    chosen = sorted(run_page.drawn(len(rows), options.queries), key=lambda row: -gains[row])[: options.explained]
    queries, gallery = (build.describe(experiment, images)[0] for images in (benchmark.queries, benchmark.gallery))
    reads = settings.plan(experiment).pass_size, distributed.device()
    lists = run.of(protocol)
    return replace(run, explained=attribution.explain(model, queries, gallery, lists, chosen, run_page.SHOWN, *reads))


if __name__ == "__main__":
    sys.exit(main())
