"""Probe what re-rankers do with a list:  python -m experiments.probe runs/mamba runs/pairwise --out runs/probe

Reads finished runs of experiments.run and leaves a table (Markdown), its numbers and a picture:

- order: the same list re-ranked in random orders. Of each candidate the standard deviation of its score over orders, of
  each query that of its metric; 0 where the order does not matter.
- transitivity, on `posters`: what a view that shares nothing with the query owes to another view that links both; 0 for
  a pair-wise re-ranker (see locore/probes/transitivity.py; some are shown in links.png). And how many of the training
  queries have such a view among the neighbours that their lists are drawn from.

The model alone is probed, in one pass: no windows, no cascade.

With --backbones instead of runs: can an encoder learn a link at all? Trains a small re-ranker with each backbone on
synthetic lists on which one candidate shares something with the query, and another with that candidate alone (see
locore/probes/synthetic_lists.py). An encoder in which candidates never meet cannot exceed chance, 50 %, in the second.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments._cli import LazyModule, command_parser, guarded, run_folders, seed_number, typed_command

backbones = LazyModule("backbones.registry")
config = LazyModule("experiments._config")
files = LazyModule("locore.utils.files")
pipeline = LazyModule("locore.pipeline.probe")
probes = LazyModule("locore.report.probes")
provenance = LazyModule("locore.utils.provenance")
settings = LazyModule("locore.pipeline.settings")
synthetic = LazyModule("locore.pipeline.synthetic")
synthetic_lists = LazyModule("locore.report.synthetic_lists")
weights_file = LazyModule("locore.reranking.weights_file")

EXAMPLES = (
    "runs/mamba runs/longformer --queries 60 --orders 10 --out runs/probe",
    "--backbones mamba rwkv longformer pairwise --steps 2000 --out runs/synthetic",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command_parser("probe", __doc__, EXAMPLES)
    group = parser.add_argument_group("finished runs")
    group.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders of experiments.run")
    group.add_argument("--queries", type=int, default=200, help="of the order probe, drawn with seed 0 (default 200)")
    group.add_argument("--orders", type=int, default=20, help="random orders (default 20)")
    group = parser.add_argument_group("encoders on synthetic lists")
    group.add_argument("--backbones", nargs="+", metavar="NAME", help='registered names, or "all"')
    group.add_argument("--steps", type=int, default=2000, help="of 64 lists (default 2000)")
    group.add_argument("--seed", type=seed_number, default=0)
    group.add_argument("--runs-folder", type=Path, default=Path("runs/synthetic"), help="of resumable checkpoints")
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, default=Path("runs/probe"), help="folder (default: runs/probe)")
    options = parser.parse_args(arguments)
    options.command = typed_command("probe", arguments)
    return guarded(lambda: _synthetic(options) if options.backbones else _probe(options))


def _probe(options: argparse.Namespace) -> int:
    if not options.runs:
        raise ValueError("Give folders of finished runs, or --backbones to train encoders on synthetic lists.")
    if options.queries < 2 or options.orders < 2:
        raise ValueError("--queries and --orders must be 2 or more, or there is no spread.")
    runs = run_folders(options.runs)
    experiments = {run: _read(run) for run in runs}
    first, *others = experiments.items()
    shown = {run: _shared(experiment) for run, experiment in experiments.items()}
    for run, _ in others:
        for what, value in shown[run].items():
            if value != shown[first[0]][what]:
                raise ValueError(f"'{first[0]}' and '{run}' differ in {what}; rows of one table need the same lists.")
    world = pipeline.build_world(first[1])
    found: dict[str, Any] = {}
    probed: dict[str, Any] = {}
    for run, experiment in experiments.items():
        measured = pipeline.probe_run(run, experiment, world, options.queries, options.orders)
        found[run.name], probed[run.name] = measured
    made = provenance.provenance(0, f"# {options.command}\n")
    table = probes.markdown(found)
    size = settings.plan(first[1]).pass_size
    files.write_text(
        options.out / "probe.md",
        f"{table}\nThe first {size} candidates. Command: `{options.command}`. Commit: {made['commit']}.\n",
    )
    files.write_json(options.out / "probe.json", {"runs": found, **made})
    probes.picture(options.out / "probe.png", found)
    if world.lists is not None:
        links = pipeline.pictured_links(world.benchmark, world.lists, probed)
        probes.draw_links(options.out / "links.png", links)
    print(table)
    return 0


def _read(run: Path) -> Any:
    """Read the settings of a run that can be probed."""
    if not (run / "metrics.json").exists():
        raise ValueError(f"'{run}' is not a finished run of experiments.run; let it finish first.")
    experiment, _ = config.read_experiment([str(run / "config.gin")], ["Model.checkpoint = None"], 0)
    if not experiment.model.learned or not (run / weights_file.WEIGHTS).exists():
        raise ValueError(f"'{run}' has no weights of its own; give runs that have trained a re-ranker.")
    if experiment.embedder_lr_scale or experiment.files:
        raise ValueError(f"'{run}' reads descriptors that this command cannot make; leave it out.")
    return experiment


def _shared(experiment: Any) -> dict[str, Any]:
    """Return what runs that are probed together have in common."""
    size = settings.plan(experiment).pass_size
    return {
        "data": experiment.data,
        "candidates": size,
        "extractor": experiment.extractor,
        "embedder": experiment.embedder,
    }


def _synthetic(options: argparse.Namespace) -> int:
    if options.runs:
        raise ValueError("--backbones trains encoders of its own; leave the run folders out.")
    if options.steps < 1:
        raise ValueError(f"--steps {options.steps} must be at least 1.")
    names = backbones.available() if options.backbones == ["all"] else options.backbones
    for name in names:
        backbones.backbones.entry(name)  # report a wrong name before the first one is trained
    found = {
        name: synthetic.train_on_synthetic_lists(
            name, options.steps, options.seed, options.runs_folder / f"{name}-seed{options.seed}"
        )
        for name in names
    }
    made = provenance.provenance(options.seed, f"# {options.command}\n")
    text = synthetic_lists.markdown(found)
    text += (
        f"\n{options.steps} steps of {synthetic.LISTS} lists, seed {options.seed}; {synthetic.TESTED} others tested. "
        f"Command: `{options.command}`. Machine: {made['machine']}. Commit: {made['commit']}.\n"
    )
    files.write_text(options.out / "links.md", text)
    files.write_json(options.out / "links.json", {"backbones": found, **made})
    synthetic_lists.picture(options.out / "links.png", found)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
