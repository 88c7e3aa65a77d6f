"""Run an experiment: benchmark, descriptors, shortlists, training, evaluation, and the files of its folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from locore.datasets import Benchmark, ImageSet
from locore.descriptors import ames_files
from locore.descriptors.ames_files import Stored
from locore.descriptors.cross_fit import has_halves
from locore.descriptors.table import SearchedTable
from locore.evaluation.search import Reranked, Search, reordered, rerank_protocols, summary
from locore.pipeline import outputs
from locore.pipeline.build import (
    batch_of_lists,
    build_reranker,
    build_searches,
    create_reranker,
    describe,
    descriptor_widths,
    with_windows_and_stages,
)
from locore.pipeline.settings import BENCHMARK, CHOSEN, Experiment, embedder_metrics, plan
from locore.pipeline.train import Learned, choose_ensemble, choose_gate, learn, search_without_training
from locore.report import exports
from locore.reranking import Ensemble, Gate, ListwiseReranker, Reranker, StandardisedEnsemble, Windows
from locore.reranking.cascade import Cascade
from locore.reranking.ensemble import default_ensemble
from locore.reranking.reranker import describe_mismatch
from locore.reranking.storage import descriptor_bytes
from locore.retrieval import Neighbours, nearest
from locore.utils import distributed, files
from locore.utils.provenance import provenance
from locore.utils.timing import Stages

log = logging.getLogger(__name__)

NEIGHBOURS = "nn_reranked.pkl"


def run_experiment(experiment: Experiment, folder: str | Path, seed: int = 0, config: str = "") -> dict[str, Any]:
    """Train and evaluate, resuming an interrupted run in `folder`.

    Args:
        experiment: the settings.
        folder: where weights, pictures and metrics are written.
        seed: of the weights at the start and of everything random in training.
        config: text that says what was run, kept in the metrics; "" = the settings themselves.

    Returns:
        The metrics, as `metrics.json` holds them.

    Raises:
        ValueError: the benchmark, the descriptors and the settings do not fit together.
    """
    folder, stage = Path(folder), Stages()
    with stage("benchmark"):
        benchmark = _load_benchmark(experiment)
    with stage("descriptors"):
        queries, gallery = _describe_benchmark(experiment, benchmark)
    if experiment.files and experiment.trains:
        experiment.files.training(
            experiment.data.training_images(benchmark)
        )  # report what is missing before the search
    with stage("shortlists"):
        given = _given(experiment, benchmark, queries, gallery)
        searches = build_searches(experiment, benchmark, queries, gallery, given)
    learned = Learned(None, None, None, None)
    if experiment.trains:
        images = experiment.data.training_images(benchmark)
        learned = learn(experiment, images, folder, seed, stage, next(iter(searches.values())))
    if learned.extractor:  # the shortlists stay, but their images are described by the trained network
        gallery, queries = (learned.extractor.extract(x) for x in (benchmark.gallery, benchmark.queries))
        searches = {p: replace(s, queries=queries, gallery=gallery) for p, s in searches.items()}
    model = _reranker(experiment, learned, queries, seed)
    first = next(iter(searches))
    ensemble = _ensemble(experiment, learned, benchmark, searches[first], model, stage)
    gate = _gate(experiment, learned, benchmark, searches[first], model)
    depth = experiment.reranking.depth
    with stage("evaluation"):
        whole = with_windows_and_stages(experiment, model)
        rankings = _rerank(experiment, searches, whole, model)
        orders = {protocol: {"reranked": ranking.order} for protocol, ranking in rankings.items()}
        if ensemble:
            for protocol, order in _ensemble_orders(experiment, searches, rankings, whole, model, ensemble).items():
                orders[protocol]["ensemble"] = order
        if gate:
            for protocol, ranking in rankings.items():
                orders[protocol]["gated"] = gate.order(ranking.similarities, ranking.order)
        tables = distributed.agreed(
            {p: summary(search, orders[p], depth) for p, search in searches.items()} if distributed.first() else {}
        )
        if gate:
            for protocol, ranking in rankings.items():
                tables[protocol]["gate_opens"] = 100 * float(gate.opens(ranking.similarities).double().mean())
        if experiment.outputs.neighbours:
            found = _neighbours(experiment, searches[first], whole, model, benchmark.self_index, given)
            if distributed.first():
                ames_files.write_neighbours(folder / NEIGHBOURS, found)
        if distributed.first():
            for protocol, search in searches.items() if experiment.outputs.trec else ():
                exports.write_trec(folder / "trec", protocol, search, {"global": None, **orders[protocol]}, benchmark)
            if experiment.outputs.json:
                exports.write_json(folder / "json", searches[first], {"global": None, **orders[first]}, benchmark)
            outputs.draw(folder, benchmark, searches[first], rankings[first].order, images=experiment.files is None)
    metrics = {
        "benchmark": benchmark.name,
        "start": experiment.model.start_name,
        "state_size": model.encoder.state_size if isinstance(model, ListwiseReranker) else None,
        "backbone": model.spec["encoder"] if isinstance(model, ListwiseReranker) else experiment.model.method,
        "candidates": depth,
        "protocol": first,
        **tables[first],
        "protocols": tables,
        "alpha": ensemble.alpha if ensemble else None,
        "temperature": ensemble.temperature if ensemble else None,
        "gate": gate.threshold if gate else None,
        "parameters": sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0,
        "descriptor_bytes": _descriptor_bytes(queries, whole if experiment.reranking.first_stages else model),
        "seconds": stage.seconds,
        "images": None if experiment.files else benchmark.fingerprint,
        "latency_ms": round(rankings[first].milliseconds_a_list, 2),
        **provenance(seed, config or repr(experiment)),
    }
    if distributed.first():
        outputs.write_rankings(folder / outputs.RANKINGS, searches, rankings)
        files.write_text(folder / "queries.csv", outputs.metrics_of_queries(searches, rankings, benchmark))
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def train_experiment(experiment: Experiment, folder: str | Path, seed: int = 0) -> None:
    """Train as `run_experiment` does, and measure nothing but the validation: no test image is looked at.

    Args:
        experiment: the settings.
        folder: where weights and `training.json` are written.
        seed: of the weights at the start and of everything random in training.

    Raises:
        ValueError: nothing is trained, or the benchmark has no training images.
    """
    benchmark, searched = _load_benchmark(experiment), None
    if experiment.data.validation == BENCHMARK:
        queries, gallery = _describe_benchmark(experiment, benchmark)
        given = _given(experiment, benchmark, queries, gallery)
        searched = next(iter(build_searches(experiment, benchmark, queries, gallery, given).values()))
    alone = replace(experiment, reranking=replace(experiment.reranking, ensemble=False))
    learn(alone, experiment.data.training_images(benchmark), Path(folder), seed, Stages(), searched)


def _descriptor_bytes(queries: SearchedTable, reranker: Reranker) -> int:
    """Return what an image takes on disk for a re-ranker."""
    one = queries[torch.zeros(1, dtype=torch.long)]
    _, local_count, local_dim = one.local.shape
    packed = isinstance(queries, Stored) and queries.local_table.packed
    return descriptor_bytes(reranker, local_count, local_dim, one.global_descriptor.shape[1], packed)


def _load_benchmark(experiment: Experiment) -> Benchmark:
    """Load the benchmark; report before any image is described that it cannot serve this experiment."""
    benchmark = experiment.data.load()
    if experiment.trains and experiment.data.validation == BENCHMARK and not benchmark.validation:
        raise ValueError(
            f"Data.validation = '{BENCHMARK}' needs a benchmark that is for validation, such as gldv2.part = 'public'; "
            f"the queries of '{benchmark.name}' are a test."
        )
    if experiment.trains:
        _check_embedder(experiment, experiment.data.training_images(benchmark))
    elif (
        experiment.model.learned
        and experiment.reranking.ensemble
        and experiment.reranking.alpha is None
        and not benchmark.validation
    ):
        raise ValueError(
            "An ensemble is chosen on held-out training classes or on gldv2's public part, never on test queries; give "
            "Reranking.alpha and temperature, or Reranking.ensemble = False."
        )
    return benchmark


def _check_embedder(experiment: Experiment, images: ImageSet) -> None:
    """Refuse training images of which it is not known whether a cross-fitted embedder has seen them."""
    folder = experiment.embedder
    if folder and has_halves(Path(folder)) and embedder_metrics(Path(folder)).get("images") != images.fingerprint:
        raise ValueError(
            f"The embedders in '{folder}' were trained on other images, so it is not known which of these images they "
            "have seen; train them on this benchmark, or without Embedding.cross_fit."
        )


def _describe_benchmark(experiment: Experiment, benchmark: Benchmark) -> tuple[SearchedTable, SearchedTable]:
    """Describe the queries and the gallery."""
    if experiment.files:
        return experiment.files.tables(benchmark)
    return describe(experiment, benchmark.queries)[0], describe(experiment, benchmark.gallery)[0]


def _given(
    experiment: Experiment, benchmark: Benchmark, queries: SearchedTable, gallery: SearchedTable
) -> Neighbours | None:
    """Return the shortlists that come from a file; None = they are searched."""
    return experiment.files.neighbours_of_queries(benchmark, (queries, gallery)) if experiment.files else None


def _reranker(experiment: Experiment, learned: Learned, queries: SearchedTable, seed: int) -> Reranker:
    """Return the re-ranker that is evaluated: the trained one, a loaded one, or one without weights."""
    if not experiment.model.learned:
        return create_reranker(experiment, descriptor_widths(experiment), plan(experiment).positions)
    model = learned.model or build_reranker(experiment, seed).to(distributed.device())
    if mismatch := describe_mismatch(model, queries[torch.zeros(1, dtype=torch.long)]):
        raise ValueError(
            f"'{experiment.model.checkpoint}' reads {mismatch}; give the settings of the extractor, or the files, that "
            "it was trained with."
        )
    return model.to(getattr(torch, experiment.reranking.dtype))


def _ensemble(
    experiment: Experiment, learned: Learned, benchmark: Benchmark, search: Search, model: Reranker, stage: Stages
) -> Ensemble | StandardisedEnsemble | None:
    """Return the ensemble that is evaluated: a given one, the training's, or one chosen on images that validate."""
    settings = experiment.reranking
    if not settings.ensemble or (experiment.trains and settings.alpha is None):
        return learned.ensemble
    if settings.alpha is not None:
        given = settings.temperature
        return StandardisedEnsemble(settings.alpha) if given is None else Ensemble(settings.alpha, given)
    with stage("ensemble"):
        if benchmark.validation:
            ensemble = choose_ensemble(experiment, search, model)
            log.info(
                "The ensemble was chosen on these queries: set Reranking.alpha = %s and Reranking.temperature = %s on "
                "the test benchmarks.",
                ensemble.alpha,
                ensemble.temperature,
            )
            return ensemble
        if benchmark.train is None or experiment.files:
            return default_ensemble(model)
        return choose_ensemble(experiment, search_without_training(experiment, benchmark.train), model)


def _gate(
    experiment: Experiment, learned: Learned, benchmark: Benchmark, search: Search, model: Reranker
) -> Gate | None:
    """Return the gate that is evaluated: a given one, the training's, or one chosen on images that validate."""
    given = experiment.reranking.gate
    if given != CHOSEN:
        return None if given is None else Gate(float(given))
    if experiment.trains:
        return learned.gate
    if benchmark.validation:
        return choose_gate(experiment, search, model)
    if experiment.model.learned or benchmark.train is None or experiment.files:
        raise ValueError(
            "A gate is chosen on images that are new to the re-ranker: held-out training classes or gldv2's public "
            "part; give Reranking.gate as a similarity."
        )
    return choose_gate(experiment, search_without_training(experiment, benchmark.train), model)


def _rerank(
    experiment: Experiment, searches: dict[str, Search], whole: Reranker, model: Reranker
) -> dict[str, Reranked]:
    """Re-rank the shortlists of all protocols."""
    depth, batch = experiment.reranking.depth, batch_of_lists(experiment, model)
    return rerank_protocols(searches, depth, lambda search: search.rerank(whole, depth, batch, distributed.device()))


def _ensemble_orders(
    experiment: Experiment,
    searches: dict[str, Search],
    rankings: dict[str, Reranked],
    whole: Reranker,
    model: Reranker,
    ensemble: Ensemble | StandardisedEnsemble,
) -> dict[str, Tensor]:
    """Return the order by global similarity and score together, of each protocol."""
    if not isinstance(whole, Windows | Cascade):
        return {protocol: ranking.ensemble(ensemble) for protocol, ranking in rankings.items()}
    both = with_windows_and_stages(experiment, model, ensemble)  # every window is sorted by both
    return {protocol: ranking.order for protocol, ranking in _rerank(experiment, searches, both, model).items()}


def _neighbours(
    experiment: Experiment,
    search: Search,
    whole: Reranker,
    model: Reranker,
    self_index: np.ndarray | None,
    given: Neighbours | None,
) -> Neighbours:
    """Re-rank the candidates of all queries as if no answer were known, followed by further images of the search."""
    queries, gallery = search.queries.global_matrix, search.gallery.global_matrix
    rows, most = np.arange(len(search.queries)), len(gallery) - (self_index is not None)
    found = nearest(queries, gallery, rows, min(experiment.outputs.neighbours, most), self_index, given=given)
    every = replace(search, rows=rows, neighbours=found)
    batch = batch_of_lists(experiment, model)
    order = every.rerank(whole, experiment.reranking.depth, batch, distributed.device()).order
    return Neighbours(*(reordered(x, order) for x in (found.indices, found.similarities, found.demoted)))
