"""A re-ranker from training images: lists, training, and an ensemble chosen on classes that are held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.stages import Stages
from locore import checkpoints, processes
from locore.checkpoints import Trained
from locore.datasets import ImageSet, Relevance, Subset
from locore.descriptors import Extractor
from locore.descriptors.live import Live
from locore.descriptors.store import Rows, SearchedTable
from locore.descriptors.unseen import WHOLE
from locore.descriptors.views import AnyView, View
from locore.evaluation import MetricLearning, Search
from locore.report import pictures
from locore.reranking import Ensemble, ListwiseReranker, Reranker
from locore.reranking.listwise import WEIGHTS
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.projections import whiten
from locore.retrieval import search
from locore.training_lists import Lists, fit_reranker

if TYPE_CHECKING:
    from experiments.experiment import Experiment

HELD_OUT = 0.1  # share of the training classes that validates, or as many as make one list
VALIDATION_QUERIES = 500
AT_ONCE = 10_000  # rows
WHITENED = 20_000  # images that a whitening is estimated from


@dataclass(frozen=True)
class Learned:
    """What came of training.

    Attributes:
        model: the re-ranker; None = none was trained.
        ensemble: with the global score, chosen on the held-out classes; None = not asked for.
        extractor: the one whose network was trained with the re-ranker, if it was.
    """

    model: ListwiseReranker | PairwiseReranker | None
    ensemble: Ensemble | None
    extractor: Extractor | None


def learn(experiment: Experiment, images: ImageSet, folder: Path, seed: int, stage: Stages) -> Learned:
    """Train the experiment's model on these images; what a killed run left in the folder is gone on from."""
    with stage("training descriptors"):
        train: SearchedTable
        if experiment.files:
            train, made_by = experiment.files.training(images), np.zeros(len(images), dtype=np.int64)
        else:
            train, made_by = experiment.describe(images, fitted=True)
        others = [experiment.describe(View(images, n), fitted=True)[0] for n in range(1, experiment.sampling.views)]
    with stage("training lists"):
        lists, validation, fitted, validating = _training_lists(experiment, train, images, made_by)
    model = experiment.model(seed)
    if experiment.whitening is not None:
        known = len(lists.descriptors)
        some = torch.linspace(0, known - 1, min(known, WHITENED)).long()
        whiten(model.projections(lists.descriptors[some]), experiment.whitening)
    if others:
        rows = torch.from_numpy(fitted.indices)
        lists = replace(lists, descriptors=AnyView([each[rows] for each in (train, *others)]))
    embedder = None
    if experiment.embedder_rate:
        embedder = experiment.extractor.embedder().to(experiment.device)
        lists = replace(lists, descriptors=Live(embedder, experiment.extractor, fitted))

    def described_anew() -> Search:
        if not embedder:
            return validation
        table = Live(embedder, experiment.extractor, validating).all()
        return replace(validation, queries=table, gallery=table)

    def validate() -> dict[str, float]:
        reranked = experiment.rerank(described_anew(), model, experiment.pass_size)
        return {n: 100 * float(v.mean()) for n, v in validation.metrics(reranked.order).items()}

    with stage("training"):
        state = fit_reranker(
            model.to(experiment.device),
            lists,
            experiment.training,
            validate,
            folder,
            seed,
            embedder,
            experiment.embedder_rate,
        )
    stage.seconds["training"] = round(state["seconds"], 1)
    extractor = replace(experiment.extractor, weights=str(folder / WHOLE)) if embedder else None
    if processes.first():
        pictures.training(folder / "training.png", state["history"])
        if embedder:
            embedder.save(folder / WHOLE)
        described = None
        if not experiment.files:
            found = extractor or experiment.extractor
            found = replace(found, weights=_absolute(found.weights), detector=_absolute(found.detector))
            described = Trained(found, experiment.pass_size)
        checkpoints.save(model, folder / WEIGHTS, described)
    processes.wait()
    ensemble = None
    if experiment.ensemble and experiment.alpha is None:
        with stage("ensemble"):
            ensemble = chosen(experiment, described_anew(), model)
    return Learned(model, ensemble, extractor)


def chosen(experiment: Experiment, validation: Search, model: Reranker) -> Ensemble:
    """The ensemble that is best on a search that validates, of as many candidates as one pass has."""
    found = experiment.rerank(validation, model, experiment.pass_size)
    main = validation.measures.main
    return Ensemble.fit(
        found.similarities, found.comparable_scores, lambda order: validation.metrics(order)[main].mean()
    )


def _absolute(name: str) -> str:
    """A file by its whole path, for whoever reads it from another folder; what is no file stays as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_file() else name


def among(listed: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    """The nearest that are among some images, and not the image itself.

    Args:
        listed: (N, topk) neighbours of all images, -1 for none. rows: (M,) the images. depth: how many of each.

    Returns:
        (M, depth), as places in `rows`.

    Raises:
        ValueError: an image has too few.
    """
    place = np.full(len(listed), -1)
    place[rows] = np.arange(len(rows))
    found = np.full((len(rows), depth), -1)
    for start in range(0, len(rows), AT_ONCE):  # a file may list a thousand of each of a million
        part = slice(start, start + AT_ONCE)
        near = np.where(listed[rows[part]] < 0, -1, place[listed[rows[part]]])
        near[near == np.arange(len(rows))[part, None]] = -1
        first = np.argsort(near < 0, axis=1, kind="stable")[:, :depth]
        found[part, : first.shape[1]] = np.take_along_axis(near, first, axis=1)
    fewest = int((found >= 0).sum(axis=1).min())
    if fewest < depth:
        raise ValueError(
            f"Files.train_neighbours leave an image only {fewest} neighbours that train, and {depth} are asked for; "
            "lower Sampling.candidates or Sampling.depth, or leave the file out, and they are searched."
        )
    return found


def _training_lists(
    experiment: Experiment, descriptors: SearchedTable, images: ImageSet, made_by: np.ndarray
) -> tuple[Lists, Search, Subset, Subset]:
    """Lists of nine tenths of the training classes, a search over the others that validates, and images of both."""
    labels = images.labels
    known, counts = np.unique(labels[made_by == 0], return_counts=True)
    order = np.random.default_rng(0).permutation(len(known))
    classes, sums = known[order], np.cumsum(counts[order])
    fewest = int(np.searchsorted(sums, experiment.candidates, side="right")) + 1
    held_out = np.isin(labels, classes[: max(fewest, int(len(np.unique(labels)) * HELD_OUT))])
    rows, others = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    count, depth = experiment.sampling.sizes(experiment.pass_size)
    listed = experiment.files.neighbours(images) if experiment.files else None
    neighbours = np.empty((len(rows), depth), dtype=np.int64) if listed is None else among(listed, rows, depth)
    for maker in np.unique(made_by) if listed is None else ():
        own = np.flatnonzero(made_by[rows] == maker)
        if len(own) <= depth:
            raise ValueError(
                f"{len(labels)} training images are too few to train and to validate with lists from {depth} "
                "neighbours; lower Experiment.candidates or Sampling.depth, or add classes."
            )
        globals_ = np.asarray(descriptors.globals_[rows[own]], dtype=np.float32)
        neighbours[own] = own[search(globals_, globals_, depth, np.arange(len(own))).indices]
    validating = Rows(descriptors, torch.from_numpy(others))
    every = np.arange(len(others))
    answers = Relevance.from_labels(labels[others], labels[others], every)
    for row in np.random.default_rng(0).permutation(every)[VALIDATION_QUERIES:]:
        answers.positive[row] = np.empty(0, dtype=np.int64)  # is not asked
    validation = Search.of(
        validating, validating, answers, labels[others], every, experiment.candidates, MetricLearning((1,))
    )
    lists = Lists(Rows(descriptors, torch.from_numpy(rows)), neighbours, labels[rows], count, experiment.sampling)
    return lists, validation, images.subset(rows), images.subset(others)
