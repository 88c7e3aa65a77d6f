"""Probe what re-rankers do with a list:  python -m experiments.probe runs/mamba runs/pairwise --out runs/probe

Reads finished runs of experiments.run and leaves a table (Markdown), its numbers and a picture:

- order: the same list re-ranked in random orders. Of each candidate the standard deviation of its score over orders, of
  each query that of its metric; 0 where the order does not matter.
- transitivity, on `posters`: what a view that shares nothing with the query owes to another view that links both; 0 for
  a pair-wise re-ranker. See locore/evaluation/transitivity.py; some of them are shown in links.png. And how many of the
  images that ask in training have such a view among the neighbours that their lists are drawn from.

The model alone is probed, in one pass: no windows, no cascade.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import guarded, run_folders

if TYPE_CHECKING:
    from experiments.experiment import Experiment
    from locore.datasets import Benchmark
    from locore.descriptors import Descriptors
    from locore.evaluation.transitivity import Probed, ProbeLists
    from locore.report.probes import Link

PICTURED = 4  # triples of links.png


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.probe", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of experiments.run")
    parser.add_argument("--queries", type=int, default=200, help="of the order's, drawn with seed 0")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/probe"))
    options = parser.parse_args(arguments)
    return guarded(lambda: _probe(options))


def _probe(options: argparse.Namespace) -> int:
    from experiments.experiment import prepare
    from experiments.provenance import provenance
    from locore import files
    from locore.report import probes
    from locore.reranking.listwise import WEIGHTS

    if options.queries < 2 or options.orders < 2:
        raise ValueError("--queries and --orders are 2 or more, or there is no spread.")
    runs = run_folders(options.runs)
    experiments = {}
    for run in runs:
        if not (run / "metrics.json").exists():
            raise ValueError(f"'{run}' is no finished run of experiments.run; let it end first.")
        experiment, _ = prepare([str(run / "config.gin")], ["Experiment.reranker = None"], 0)
        if not experiment.has_weights or not (run / WEIGHTS).exists():
            raise ValueError(f"'{run}' has no weights of its own; give runs that have trained a re-ranker.")
        if experiment.embedder_rate or experiment.files:
            raise ValueError(f"'{run}' reads descriptors that this command does not make; leave it out.")
        experiments[run] = experiment
    first, *others = experiments.items()
    for run, experiment in others:
        for what in ("data", "pass_size", "extractor", "embedder"):
            if getattr(experiment, what) != getattr(first[1], what):
                raise ValueError(f"'{first[0]}' and '{run}' differ in {what}; rows of one table are of the same lists.")
    world = _world(first[1])
    found, probed = {}, {}
    for run, experiment in experiments.items():
        found[run.name], probed[run.name] = _one(run, experiment, world, options)
    command = shlex.join(["python", "-m", "experiments.probe", *sys.argv[1:]])
    made = provenance(0, f"# {command}\n")
    table = probes.markdown(found)
    files.write_text(
        options.out / "probe.md",
        f"{table}\nThe first {first[1].pass_size} candidates. Command: `{command}`. Commit: {made['commit']}.\n",
    )
    files.write_json(options.out / "probe.json", {"runs": found, **made})
    probes.picture(options.out / "probe.png", found)
    if world.lists is not None:
        probes.links(options.out / "links.png", _links(world.benchmark, world.lists, probed))
    print(table)
    return 0


@dataclass(frozen=True)
class World:
    """What the runs are probed on, the same for all of them.

    Attributes:
        queries, gallery: descriptors. lists: of the transitivity probe; None = on another benchmark than `posters`.
    """

    benchmark: Benchmark
    queries: Descriptors
    gallery: Descriptors
    lists: ProbeLists | None


def _world(experiment: Experiment) -> World:
    """Of one of the runs, which agree in all that it follows from."""
    from locore.datasets.posters import Posters
    from locore.evaluation.transitivity import probe_lists, triples

    benchmark = experiment.data.load()
    queries, gallery = (experiment.describe(images)[0] for images in (benchmark.queries, benchmark.gallery))
    lists = None
    if isinstance(benchmark.gallery, Posters) and isinstance(benchmark.queries, Posters):
        chosen = triples(benchmark.queries, benchmark.gallery)
        lists = probe_lists(chosen, benchmark.queries, benchmark.gallery, queries, gallery, experiment.pass_size)
    return World(benchmark, queries, gallery, lists)


def _one(
    run: Path, experiment: Experiment, world: World, options: argparse.Namespace
) -> tuple[dict[str, Any], Probed | None]:
    """The probes of one run: means and 95 % intervals, and where there are triples what became of each."""
    import numpy as np

    from locore import checkpoints
    from locore.evaluation.bootstrap import estimate
    from locore.evaluation.robustness import order_spread
    from locore.evaluation.transitivity import probe

    model: Any = checkpoints.load(run).to(experiment.device)
    searched = next(iter(experiment.searches(world.benchmark, world.queries, world.gallery).values()))
    rows = np.sort(np.random.default_rng(0).permutation(len(searched.rows))[: options.queries])
    shared = experiment.device, experiment.at_once
    spread = order_spread(model, searched, experiment.pass_size, rows, *shared, options.orders)
    assert spread.scores is not None  # what has weights gives scores
    groups, metric = searched.groups[rows], searched.measures.main
    found: dict[str, Any] = {
        "order: score": estimate(spread.scores, groups),
        f"order: {metric}": estimate(100 * spread.metric, groups),
        f"shuffled - searched: {metric}": estimate(100 * (spread.shuffled - spread.searched), groups),
    }
    if world.lists is None:
        return found, None
    probed = probe(model, world.lists, world.queries, world.gallery, *shared)
    measured = {"transitivity gain": probed.gain, "elsewhere": probed.elsewhere, "places": probed.places}
    found |= {name: estimate(values, probed.walls) for name, values in measured.items()}
    found["trained with a link, %"] = _links_seen(experiment, world.benchmark)
    return found, probed


def _links_seen(experiment: Experiment, benchmark: Benchmark) -> dict[str, float]:
    """Share of the training images among whose neighbours, of which lists are drawn, something is linked to them."""
    import numpy as np

    from locore.evaluation.bootstrap import estimate
    from locore.evaluation.transitivity import have_links
    from locore.retrieval import search

    images: Any = experiment.data.training_images(benchmark)
    rows = experiment.describe(images, fitted=True)[0].globals_
    _, depth = experiment.sampling.sizes(experiment.pass_size)
    neighbours = search(rows, rows, depth, np.arange(len(images))).indices
    return estimate(100.0 * have_links(images, neighbours), images.walls)


def _links(benchmark: Benchmark, lists: ProbeLists, probed: dict[str, Probed | None]) -> list[Link]:
    """Some of the triples, drawn with seed 0, with what became of the hard view under each run."""
    import numpy as np

    from locore.evaluation.transitivity import EASY_PLACE, HARD_PLACE
    from locore.report.probes import Link

    shown = []
    for number in np.random.default_rng(0).permutation(len(lists))[:PICTURED]:
        easy, hard = (int(lists.candidates[number, place]) for place in (EASY_PLACE, HARD_PLACE))
        mask = lists.shared[number]
        said = [
            f"{name}: score {_fall(each.gain[number])} deviations of the list\n"
            f"    place {each.place[number]:.0f} → {each.place[number] + each.places[number]:.0f}; "
            f"as much replaced elsewhere: {_fall(each.elsewhere[number])}"
            for name, each in probed.items()
            if each
        ]
        shown.append(
            Link(
                query=benchmark.queries.image(int(lists.query[number])),
                easy=benchmark.gallery.image(easy),
                hard=benchmark.gallery.image(hard),
                replaced=lists.positions[number][mask].numpy(),
                side=len(mask) ** -0.5,
                said=said,
            )
        )
    return shown


def _fall(value: float) -> str:
    """What a score changed by, without a sign before nothing."""
    return f"{-round(float(value), 2) or 0:+.2f}"


if __name__ == "__main__":
    sys.exit(main())
