"""A run of an experiment: benchmark, descriptors, shortlists, training, evaluation, and what is left in its folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import outcome
from experiments.experiment import Experiment
from experiments.learning import Learned, chosen, learn
from experiments.provenance import provenance
from experiments.stages import Stages
from locore import files, processes
from locore.datasets import Benchmark, ImageSet
from locore.descriptors import ames
from locore.descriptors.store import SearchedTable
from locore.descriptors.unseen import have_halves
from locore.evaluation import Reranked, Search, reordered, rerank_protocols, summary
from locore.report import trec
from locore.reranking import Ensemble, ListwiseReranker, Reranker, Windows
from locore.reranking.cascade import Cascade
from locore.reranking.reranker import reads_other
from locore.retrieval import Neighbours, nearest

log = logging.getLogger(__name__)

RANKINGS = "rankings.npz"
NEIGHBOURS = "nn_reranked.pkl"


def run(experiment: Experiment, folder: Path, seed: int, config: str) -> dict[str, Any]:
    """Train and evaluate; what a killed run left in the folder is gone on from. -> metrics, with their config."""
    stage = Stages()
    with stage("benchmark"):
        benchmark = _benchmark(experiment)
    with stage("descriptors"):
        queries, gallery = _described(experiment, benchmark)
    if experiment.files and experiment.trains:
        # What is missing is said before the search.
        experiment.files.training(experiment.data.training_images(benchmark))
    with stage("shortlists"):
        listed = experiment.files.known(benchmark) if experiment.files else None
        searches = experiment.searches(benchmark, queries, gallery, listed)
    learned = Learned(None, None, None)
    if experiment.trains:
        learned = learn(experiment, experiment.data.training_images(benchmark), folder, seed, stage)
    if learned.extractor:  # the shortlists stay, what is read of their images is new
        gallery, queries = (learned.extractor.extract(x) for x in (benchmark.gallery, benchmark.queries))
        searches = {p: replace(s, queries=queries, gallery=gallery) for p, s in searches.items()}
    model = _evaluated(experiment, learned, queries, seed)
    first = next(iter(searches))
    ensemble = _ensemble(experiment, learned, benchmark, searches[first], model, stage)
    with stage("evaluation"):
        whole = experiment.whole(model)
        rankings = _reranked(experiment, searches, whole)
        orders = {protocol: {"reranked": ranking.order} for protocol, ranking in rankings.items()}
        if ensemble:
            for protocol, order in _by_both(experiment, searches, rankings, model, ensemble).items():
                orders[protocol]["ensemble"] = order
        tables = {p: summary(searched, orders[p], experiment.depth) for p, searched in searches.items()}
        if experiment.neighbours:
            found = _neighbours(experiment, searches[first], whole, benchmark.self_index, listed)
            if processes.first():
                ames.write_neighbours(folder / NEIGHBOURS, found)
        if processes.first():
            for protocol, searched in searches.items() if experiment.trec else ():
                trec.write(folder / "trec", protocol, searched, {"global": None, **orders[protocol]}, benchmark)
            outcome.draw(folder, benchmark, searches[first], rankings[first].order, images=experiment.files is None)
    metrics = {
        "benchmark": benchmark.name,
        "backbone": model.spec["encoder"] if isinstance(model, ListwiseReranker) else experiment.method,
        "candidates": experiment.depth,
        "protocol": first,
        **tables[first],
        "protocols": tables,
        "alpha": ensemble.alpha if ensemble else None,
        "temperature": ensemble.temperature if ensemble else None,
        "parameters": experiment.sizes[0],
        "seconds": stage.seconds,
        "images": None if experiment.files else benchmark.fingerprint,
        "latency_ms": round(rankings[first].milliseconds_a_list, 2),
        **provenance(seed, config),
    }
    if processes.first():
        outcome.rankings(folder / RANKINGS, searches, rankings)
        files.write_text(folder / "queries.csv", outcome.each_query(searches, rankings, benchmark))
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _benchmark(experiment: Experiment) -> Benchmark:
    """The benchmark; that it cannot serve this experiment is said before anything is described."""
    benchmark = experiment.data.load()
    if experiment.trains:
        _check_embedder(experiment, experiment.data.training_images(benchmark))
    elif experiment.ensemble and experiment.alpha is None and not benchmark.validation:
        raise ValueError(
            "An ensemble is chosen on held-out training classes or on gldv2's public part, never on what is asked; "
            "give Experiment.alpha and temperature, or Experiment.ensemble = False."
        )
    return benchmark


def _check_embedder(experiment: Experiment, images: ImageSet) -> None:
    """Refuse training images of which nobody knows whether an embedder of halves has seen them."""
    folder = experiment.embedder
    if folder and have_halves(Path(folder)) and experiment.trained.get("images") != images.fingerprint:
        raise ValueError(
            f"The embedders in '{folder}' were trained on other images, so it is not known which of these they have "
            "seen; train them on this benchmark, or without Embedding.halves."
        )


def _described(experiment: Experiment, benchmark: Benchmark) -> tuple[SearchedTable, SearchedTable]:
    """Descriptors of the queries and of the gallery."""
    if experiment.files:
        return experiment.files.tables(benchmark)
    return experiment.describe(benchmark.queries)[0], experiment.describe(benchmark.gallery)[0]


def _evaluated(experiment: Experiment, learned: Learned, queries: SearchedTable, seed: int) -> Reranker:
    """The re-ranker as it is evaluated: the one that was trained or is loaded, or one without weights."""
    if not experiment.has_weights:
        return experiment.make(experiment.widths, experiment.tokens_at_most)
    model = learned.model or experiment.model(seed).to(experiment.device)
    if other := reads_other(model, queries[torch.zeros(1, dtype=torch.long)]):
        raise ValueError(
            f"'{experiment.reranker}' reads {other}; give the extractor's settings, or the files, that it was trained "
            "with."
        )
    return model.to(experiment.precision)


def _ensemble(
    experiment: Experiment, learned: Learned, benchmark: Benchmark, searched: Search, model: Reranker, stage: Stages
) -> Ensemble | None:
    """The ensemble that is evaluated: a given one, one that training chose, or one chosen on what validates."""
    if experiment.ensemble and experiment.alpha is not None and experiment.temperature is not None:
        return Ensemble(experiment.alpha, experiment.temperature)
    if not (benchmark.validation and experiment.ensemble) or experiment.trains:
        return learned.ensemble
    with stage("ensemble"):
        ensemble = chosen(experiment, searched, model)
    log.info(
        "The ensemble was chosen on these queries: Experiment.alpha = %s, Experiment.temperature = %s are for the "
        "tests.",
        ensemble.alpha,
        ensemble.temperature,
    )
    return ensemble


def _reranked(experiment: Experiment, searches: dict[str, Search], reranker: Reranker) -> dict[str, Reranked]:
    depth = experiment.depth
    return rerank_protocols(searches, depth, lambda searched: experiment.rerank(searched, reranker, depth))


def _by_both(
    experiment: Experiment,
    searches: dict[str, Search],
    rankings: dict[str, Reranked],
    model: Reranker,
    ensemble: Ensemble,
) -> dict[str, Tensor]:
    """Of each protocol the ensemble's order."""
    if not isinstance(experiment.whole(model), Windows | Cascade):
        return {protocol: ranking.ensemble(ensemble) for protocol, ranking in rankings.items()}
    again = _reranked(experiment, searches, experiment.whole(model, ensemble))  # every window is sorted by both scores
    return {protocol: ranking.order for protocol, ranking in again.items()}


def _neighbours(
    experiment: Experiment,
    searched: Search,
    reranker: Reranker,
    self_index: np.ndarray | None,
    listed: Neighbours | None,
) -> Neighbours:
    """Of all queries, as if nothing were known of what is right: re-ranked candidates, and others behind them."""
    queries, gallery = searched.queries.globals_, searched.gallery.globals_
    rows, most = np.arange(len(searched.queries)), len(gallery) - (self_index is not None)
    found = nearest(queries, gallery, rows, min(experiment.neighbours, most), self_index, listed=listed)
    order = experiment.rerank(replace(searched, rows=rows, neighbours=found), reranker, experiment.depth).order
    return Neighbours(*(reordered(x, order) for x in (found.indices, found.similarities, found.behind)))
