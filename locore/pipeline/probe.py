"""Probe finished runs: what their re-rankers do with the order of a list and with links between candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from locore.checkpoints import native
from locore.datasets import Benchmark
from locore.datasets.posters import Posters
from locore.descriptors.table import Descriptors
from locore.metrics.bootstrap import estimate
from locore.pipeline.build import batch_of_lists, build_searches, describe
from locore.pipeline.settings import Experiment, plan
from locore.probes.order import order_spread
from locore.probes.transitivity import (
    EASY_PLACE,
    HARD_PLACE,
    Probed,
    ProbeLists,
    have_links,
    probe,
    probe_lists,
    triples,
)
from locore.report.probes import Link
from locore.retrieval import search
from locore.utils import distributed

PICTURED = 4  # triples of links.png


@dataclass(frozen=True)
class ProbeWorld:
    """What the runs are probed on, the same for all of them.

    Attributes:
        benchmark: of the runs.
        queries: its descriptors.
        gallery: its descriptors.
        lists: of the transitivity probe; None = on another benchmark than `posters`.
    """

    benchmark: Benchmark
    queries: Descriptors
    gallery: Descriptors
    lists: ProbeLists | None


def build_world(experiment: Experiment) -> ProbeWorld:
    """Describe the benchmark of a run; runs that are probed together agree in all that this follows from."""
    benchmark = experiment.data.load()
    queries, gallery = (describe(experiment, images)[0] for images in (benchmark.queries, benchmark.gallery))
    lists = None
    if isinstance(benchmark.gallery, Posters) and isinstance(benchmark.queries, Posters):
        chosen, size = triples(benchmark.queries, benchmark.gallery), plan(experiment).pass_size
        lists = probe_lists(chosen, benchmark.queries, benchmark.gallery, queries, gallery, size)
    return ProbeWorld(benchmark, queries, gallery, lists)


def probe_run(
    run: Path, experiment: Experiment, world: ProbeWorld, queries: int, orders: int
) -> tuple[dict[str, Any], Probed | None]:
    """Probe the re-ranker of one run.

    Args:
        run: its folder.
        experiment: its settings.
        world: what it is probed on.
        queries: number of queries of the order probe, drawn with seed 0.
        orders: number of random orders.

    Returns:
        Means with 95 % intervals by name, and what became of each triple (None without triples).
    """
    device = distributed.device()
    model: Any = native.load(run).to(device)
    searched = next(iter(build_searches(experiment, world.benchmark, world.queries, world.gallery).values()))
    rows = np.sort(np.random.default_rng(0).permutation(len(searched.rows))[:queries])
    shared = device, batch_of_lists(experiment, model)
    spread = order_spread(model, searched, plan(experiment).pass_size, rows, *shared, orders)
    assert spread.scores is not None  # a re-ranker with weights gives scores
    groups, metric = searched.groups[rows], searched.suite.main
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
    found["trained with a link, %"] = _share_with_links(experiment, world.benchmark)
    return found, probed


def _share_with_links(experiment: Experiment, benchmark: Benchmark) -> dict[str, float]:
    """Return the share of training images with a linked view among the neighbours that their lists are drawn from."""
    images: Any = experiment.data.training_images(benchmark)
    rows = describe(experiment, images, in_training=True)[0].global_matrix
    _, depth = experiment.sampling.sizes(plan(experiment).pass_size)
    neighbours = search(rows, rows, depth, np.arange(len(images))).indices
    return estimate(100.0 * have_links(images, neighbours), images.walls)


def pictured_links(benchmark: Benchmark, lists: ProbeLists, probed: dict[str, Probed | None]) -> list[Link]:
    """Draw some triples with seed 0, each with what became of the hard view under each run."""
    shown = []
    for number in np.random.default_rng(0).permutation(len(lists))[:PICTURED]:
        easy, hard = (int(lists.candidates[number, place]) for place in (EASY_PLACE, HARD_PLACE))
        mask = lists.shared[number]
        lines = [
            f"{name}: score {_change(each.gain[number])} deviations of the list\n"
            f"    place {each.place[number]:.0f} → {each.place[number] + each.places[number]:.0f}; "
            f"as much replaced elsewhere: {_change(each.elsewhere[number])}"
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
                lines=lines,
            )
        )
    return shown


def _change(value: float) -> str:
    """Return what a score changed by, without a sign before zero."""
    return f"{-round(float(value), 2) or 0:+.2f}"
