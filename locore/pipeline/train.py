"""Train a re-ranker on images: training lists, the training, and an ensemble chosen on held-out classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from locore.checkpoints import native
from locore.checkpoints.native import Trained
from locore.datasets import ImageSet, Subset
from locore.descriptors import Extractor
from locore.descriptors.augment import AnyView, View
from locore.descriptors.cross_fit import WHOLE
from locore.descriptors.online import OnlineTable
from locore.descriptors.table import Rows, SearchedTable
from locore.evaluation.search import Search
from locore.pipeline.build import LearnedReranker, batch_of_lists, build_reranker, describe
from locore.pipeline.settings import (
    BENCHMARK,
    CHOSEN,
    HELD_OUT,
    LISTWISE,
    RESIDUAL_HEAD,
    Experiment,
    Model,
    Reranking,
    plan,
)
from locore.pipeline.validation import held_out, validation_search
from locore.report import pictures
from locore.reranking import Ensemble, Gate, ListwiseReranker, Reranker, StandardisedEnsemble
from locore.reranking.reranker import rerankers
from locore.reranking.weights_file import WEIGHTS
from locore.retrieval import search as search_neighbours
from locore.training.init import start_at_share, whiten
from locore.training.lists import Lists, Sampling, fit_reranker
from locore.training.loop import Training
from locore.utils import distributed, files
from locore.utils.progress import track
from locore.utils.timing import Stages

NOISE = 0.005  # of a metric: less is not counted as a loss
ROWS = 10_000  # rows of a neighbour file at a time
TRAINING = "training.json"  # the curves of a training, and what its best weights have in validation
WHITENED = 20_000  # images that a whitening is estimated from


@dataclass(frozen=True)
class Learned:
    """The result of a training.

    Attributes:
        model: the re-ranker; None = none was trained.
        ensemble: with the global similarity, chosen on held-out classes; None = not asked for.
        gate: chosen on held-out classes; None = not asked for.
        extractor: the one whose network was trained with the re-ranker; None = it was not.
    """

    model: LearnedReranker | None
    ensemble: Ensemble | StandardisedEnsemble | None
    gate: Gate | None
    extractor: Extractor | None


def train_reranker(
    reranker: str,
    images: ImageSet,
    extractor: Extractor,
    folder: str | Path,
    candidates: int = 24,
    training: Training | None = None,
    sampling: Sampling | None = None,
    size: str = "mini",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    start: str | None = None,
) -> LearnedReranker:
    """Train a re-ranker on labelled images, resuming an interrupted training in `folder`.

    Args:
        reranker: name of a registered sequence encoder, such as "mamba", which gets our head (gin/head/residual.gin),
            or of a learned re-ranker, such as "ames".
        images: training images with their classes; a tenth of the classes validates.
        extractor: of the descriptors.
        folder: of the checkpoints and of the finished `model.safetensors`, which `locore.load` reads.
        candidates: K of the lists.
        training: settings of the loop; None = the defaults.
        sampling: of the lists; None = lists with hard negatives.
        size: named size of the encoder or re-ranker.
        settings: further arguments of the encoder or re-ranker.
        seed: of the weights at the start and of everything random.
        start: "synthetic", or the folder of a pretraining of the encoder, see `Model`.

    Returns:
        The re-ranker with its best weights.

    Raises:
        ValueError: an unknown name, or images that are too few for lists of so many candidates.
    """
    learned = reranker in rerankers.available()
    if learned:
        model = Model(method=reranker, size=size, start=start)
    else:
        model = Model(LISTWISE, backbone=reranker, size=size, start=start, **RESIDUAL_HEAD)
    experiment = Experiment(
        model=model,
        reranking=Reranking(candidates=candidates, ensemble=False),
        extractor=extractor,
        sampling=sampling or Sampling(hard_negatives=True),
        training=training or Training(),
        settings={reranker: dict(settings or {})},
    )
    found = learn(experiment, images, Path(folder), seed, Stages()).model
    assert found is not None  # the experiment trains
    return found.eval()


def learn(
    experiment: Experiment,
    images: ImageSet,
    folder: Path,
    seed: int,
    stage: Stages,
    searched: Search | None = None,
) -> Learned:
    """Train the re-ranker of an experiment, resuming an interrupted training in `folder`.

    Args:
        experiment: the settings.
        images: the training images.
        folder: of checkpoints and weights.
        seed: of the weights at the start and of everything random.
        stage: times the stages.
        searched: the benchmark's own search, for `Data.validation` = "benchmark".
    """
    if not experiment.trains:
        raise ValueError(f"'{experiment.model.method}' has nothing to train; give a learned re-ranker.")
    with stage("training descriptors"):
        train: SearchedTable
        if experiment.files:
            train, made_by = experiment.files.training(images), np.zeros(len(images), dtype=np.int64)
        else:
            train, made_by = describe(experiment, images, in_training=True)
        views = range(1, experiment.sampling.views)
        others = [describe(experiment, View(images, number), in_training=True)[0] for number in views]
    with stage("training lists"):
        lists, validation, fitted, validating = _training_lists(experiment, train, images, made_by)
        if experiment.data.validation == BENCHMARK:
            validation = searched
    if validation:
        experiment.training.check_monitor(validation.metrics(None))
    model = build_reranker(experiment, seed)
    if experiment.model.whitening is not None:
        known = len(lists.descriptors)
        some = torch.linspace(0, known - 1, min(known, WHITENED)).long()
        whiten(model.projections(lists.descriptors[some]), experiment.model.whitening)
    if isinstance(model, ListwiseReranker) and experiment.model.residual is not None and not experiment.model.start:
        start_at_share(model.head.bias, lists.share_of_right(seed))
    if others:
        rows = torch.from_numpy(fitted.indices)
        lists = replace(lists, descriptors=AnyView([each[rows] for each in (train, *others)]))
    embedder, device = None, distributed.device()
    if experiment.embedder_lr_scale:
        embedder = experiment.extractor.embedder().to(device)
        lists = replace(lists, descriptors=OnlineTable(embedder, experiment.extractor, fitted))

    def described_now() -> Search:
        assert validation is not None
        if not embedder:
            return validation
        table = OnlineTable(embedder, experiment.extractor, validating).all()
        assert isinstance(validation.queries, Rows)  # of the gallery
        return replace(validation, queries=replace(validation.queries, table=table), gallery=table)

    def validate() -> dict[str, float]:
        search = described_now()
        reranked = _rerank_pass(experiment, search, model)
        return {n: 100 * float(v.mean()) for n, v in search.metrics(reranked.order).items()}

    with stage("training"):
        scale = experiment.embedder_lr_scale
        settings = experiment.training
        main, checked = (validation.suite.main, validate) if validation else ("", None)
        state = fit_reranker(model.to(device), lists, settings, checked, folder, seed, embedder, scale, main)
    stage.seconds["training"] = round(state["seconds"], 1)
    extractor = replace(experiment.extractor, weights=str(folder / WHOLE)) if embedder else None
    if distributed.first():
        pictures.training(folder / "training.png", state["history"])
        kept = ("best", "seconds", "history")
        files.write_json(folder / TRAINING, {"monitor": settings.monitor or main} | {n: state[n] for n in kept})
        if embedder:
            embedder.save(folder / WHOLE)
        trained = None
        if not experiment.files:
            own = extractor or experiment.extractor
            own = replace(own, weights=_absolute(own.weights), detector=_absolute(own.detector))
            trained = Trained(own, plan(experiment).pass_size)
        native.save(model, folder / WEIGHTS, trained)
    distributed.wait()
    ensemble, gate = None, None
    if experiment.reranking.ensemble and experiment.reranking.alpha is None:
        with stage("ensemble"):
            ensemble = choose_ensemble(experiment, described_now(), model)
    if experiment.reranking.gate == CHOSEN:
        with stage("gate"):
            gate = choose_gate(experiment, described_now(), model)
    return Learned(model, ensemble, gate, extractor)


def choose_ensemble(experiment: Experiment, validation: Search, model: Reranker) -> Ensemble | StandardisedEnsemble:
    """Choose the best ensemble on a search that validates, with as many candidates as one pass has.

    The best is the one with the highest main metric among those that make no shown metric worse than the search does.
    """
    found = _rerank_pass(experiment, validation, model)
    kind = Ensemble if experiment.model.learned else StandardisedEnsemble
    searched = validation.metrics(None)

    def quality(order: Tensor) -> float:
        metrics = validation.metrics(order)
        harm = any(metrics[name].mean() < searched[name].mean() - NOISE for name in validation.suite.shown)
        return float(metrics[validation.suite.main].mean()) - harm

    return kind.fit(found.similarities, found.comparable_scores(), quality)


def choose_gate(experiment: Experiment, validation: Search, model: Reranker) -> Gate:
    """Choose the gate with the highest main metric on a search that validates."""
    found, main = _rerank_pass(experiment, validation, model), validation.suite.main
    return Gate.fit(found.similarities, found.order, lambda order: float(validation.metrics(order)[main].mean()))


def search_without_training(experiment: Experiment, images: ImageSet) -> Search:
    """Return a search that validates a re-ranker without weights on training images, all of which are new to it."""
    table, made_by = describe(experiment, images)
    comparable = made_by == 0
    return validation_search(images, table, comparable, comparable, experiment.reranking.candidates)[0]


def _rerank_pass(experiment: Experiment, search: Search, model: Reranker):
    """Re-rank as many candidates as one pass of the model reads."""
    count = plan(experiment).pass_size if experiment.model.listwise else experiment.reranking.candidates
    return search.rerank(model, count, batch_of_lists(experiment, model), distributed.device())


def _absolute(name: str) -> str:
    """Return a file by its absolute path, for readers in other folders; what is not a file stays as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_file() else name


def neighbours_within(
    neighbours: Callable[[np.ndarray], np.ndarray], count: int, rows: np.ndarray, depth: int
) -> np.ndarray:
    """Select, for some images, the nearest neighbours that are among these images too, without the image itself.

    Args:
        neighbours: given images (M,), their neighbours (M, topk) among all images, -1 for none.
        count: number of all images.
        rows: (M,) the images.
        depth: number of neighbours of each.

    Returns:
        (M, depth) places in `rows`.

    Raises:
        ValueError: an image has too few.
    """
    place = np.full(count, -1)
    place[rows] = np.arange(len(rows))
    found = np.full((len(rows), depth), -1, dtype=np.int32)
    # A file may hold a thousand neighbours of each of a million images.
    for start in track(range(0, len(rows), ROWS), "reading neighbours"):
        part = slice(start, start + ROWS)
        listed = neighbours(rows[part])
        near = np.where(listed < 0, -1, place[listed])
        near[near == np.arange(len(rows))[part, None]] = -1
        first = np.argsort(near < 0, axis=1, kind="stable")[:, :depth]
        found[part, : first.shape[1]] = np.take_along_axis(near, first, axis=1)
    fewest = int((found >= 0).sum(axis=1).min())
    if fewest < depth:
        raise ValueError(
            f"Files.train_neighbours leave an image only {fewest} neighbours among the training images, and {depth} "
            "are needed; lower Sampling.candidates or Sampling.depth, or leave the file out to search them."
        )
    return found


def _training_lists(
    experiment: Experiment, descriptors: SearchedTable, images: ImageSet, made_by: np.ndarray
) -> tuple[Lists, Search | None, Subset, Subset]:
    """Return the lists, a search of held-out classes that validates, and the images of both.

    Where held-out classes do not validate, all are trained on, and there is no such search.
    """
    labels, reranking = images.labels, experiment.reranking
    holds_out = experiment.data.validation == HELD_OUT
    held = held_out(labels, made_by, reranking.candidates) if holds_out else np.zeros(len(labels), dtype=bool)
    rows = np.flatnonzero(~held)
    count, depth = experiment.sampling.sizes(reranking.pass_size)
    if experiment.sampling.hard_negatives:
        fewest = min(int((made_by[rows] == maker).sum()) for maker in np.unique(made_by)) - 1
        depth = max(count, min(count + int(np.unique(labels[rows], return_counts=True)[1].max()), fewest))
    given = experiment.files.training_neighbours(images) if experiment.files else None
    neighbours = (
        np.empty((len(rows), depth), dtype=np.int32)
        if given is None
        else neighbours_within(given, len(images), rows, depth)
    )
    for maker in np.unique(made_by) if given is None else ():
        own = np.flatnonzero(made_by[rows] == maker)
        if len(own) <= depth:
            raise ValueError(
                f"{len(labels)} training images are too few to train and to validate with lists from {depth} "
                "neighbours; lower Reranking.candidates or Sampling.depth, or add classes."
            )
        vectors = np.asarray(descriptors.global_matrix[rows[own]], dtype=np.float32)
        neighbours[own] = own[search_neighbours(vectors, vectors, depth, np.arange(len(own))).indices]
    # A vision model in training describes what validates anew each time.
    searched = held if experiment.embedder_lr_scale else made_by == 0
    validation, gallery = None, rows[:0]
    if holds_out:
        validation, gallery = validation_search(images, descriptors, held, searched, reranking.candidates)
    lists = Lists(
        Rows(descriptors, torch.from_numpy(rows)), neighbours, images.subset(rows).judged, count, experiment.sampling
    )
    return lists, validation, images.subset(rows), images.subset(gallery)
