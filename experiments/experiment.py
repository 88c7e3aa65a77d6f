"""One experiment: benchmark, descriptors, shortlists, training, evaluation, run folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import gin
import numpy as np
import torch
from torch import Tensor

from backbones import ListLayout
from backbones.registry import suggest
from experiments.configuration import SETTINGS, built, extractor, sampling, training
from experiments.data import Data
from experiments.provenance import provenance
from experiments.stages import Stages
from locore import checkpoints, files
from locore.datasets import Benchmark, ImageSet, Relevance, Subset
from locore.descriptors import Descriptors, Extractor
from locore.descriptors.live import Live
from locore.descriptors.unseen import FITTED_ON, WHOLE, describe, have_halves
from locore.descriptors.views import AnyView, View
from locore.evaluation import MetricLearning, NothingToAsk, Search, reordered, summary
from locore.language_model import start_from
from locore.report import pictures
from locore.reranking import Ensemble, ListwiseReranker, Reranker, Windows
from locore.retrieval import search
from locore.training import Training
from locore.training_lists import Lists, Sampling, fit_reranker

log = logging.getLogger(__name__)

HELD_OUT = 0.1  # share of the training classes that validates, or as many as make one list
VALIDATION_QUERIES = 500
VALUES = 2**22  # values of a layer's tokens at a time in evaluation: as much memory for every length and width
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PICTURED = 8  # queries in lists.png


@gin.configurable
@dataclass
class Experiment:
    """What to run; `seed` and the run folder come from the command line.

    Attributes:
        backbone, size: registered names. candidates: how many are re-ranked.
        window: K of one pass where that are more, see `Windows`; None = all candidates in one.
        ensemble: also evaluate the ensemble with the global score; with windows it takes as long again.
        positions, score, global_token, dropout: see `ListwiseReranker`.
        whitening: start the projections as a whitening of the training descriptors, 1 = wholly, 0 = only scaled; None =
            start them at random.
        language_model: a folder with Longformer's or RoBERTa's weights to start from, see `locore.language_model`.
        embedder: a run folder of `experiments.embed`, whose networks take the place of the extractor's.
        embedder_rate: learning rate of the vision model over the re-ranker's, 0 = it stays as it is.
        evaluated_in: precision of the trained model in evaluation, "float32" or "bfloat16".
    """

    backbone: str = "mamba"
    size: str = "mini"
    candidates: int = 24
    window: int | None = None
    ensemble: bool = True
    positions: str = "absolute"
    score: str = "mean"
    global_token: bool = True
    dropout: float = 0.0
    whitening: float | None = 1.0
    language_model: str | None = None
    embedder: str | None = None
    embedder_rate: float = 0.0
    evaluated_in: str = "float32"
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=extractor)
    sampling: Sampling = field(default_factory=sampling)
    training: Training = field(default_factory=training)

    def __post_init__(self):
        if self.evaluated_in not in PRECISIONS:
            unknown = self.evaluated_in
            raise ValueError(f"Unknown Experiment.evaluated_in '{unknown}'{suggest(unknown, PRECISIONS)}")
        if self.embedder_rate and self.sampling.views > 1:
            raise ValueError("Sampling.views are of descriptors that stay, so leave Experiment.embedder_rate at 0.")
        if self.embedder:
            self.trained = _finished(Path(self.embedder))
            self.extractor = replace(self.extractor, weights=str(Path(self.embedder) / WHOLE))
        global_dim, local_dim = self.extractor.sizes
        if self.window is not None and not 1 < self.window <= self.candidates:
            raise ValueError(f"Experiment.window = {self.window} must be 2 to {self.candidates}, the candidates.")
        self.pass_size = self.window or self.candidates
        self.sampling.sizes(self.pass_size)
        self.layout = ListLayout(self.extractor.locals_per_image + 1 + self.global_token, 1 + self.pass_size)
        self.model_settings = {
            "encoder": self.backbone,
            "local_dim": local_dim,
            "global_dim": global_dim,
            "max_positions": self.layout.tokens,
            "size": self.size,
            "settings": SETTINGS[self.backbone]() if self.backbone in SETTINGS else {},
            "global_token": self.global_token,
            "positions": self.positions,
            "score": self.score,
            "dropout": self.dropout,
        }

    def model(self, seed: int) -> ListwiseReranker:
        """The re-ranker with its starting weights."""
        torch.manual_seed(seed)
        model = ListwiseReranker(**self.model_settings)
        if self.language_model:
            start_from(model, self.language_model)
        return model

    @cached_property
    def parameters(self) -> int:
        """Of the re-ranker."""
        return sum(p.numel() for p in self.model(seed=0).parameters())

    def weights_used(self) -> str:
        """What is in the files of weights, as lines of the configuration: another file there is another run."""
        folder = Path(self.embedder) if self.embedder else None
        files_ = [folder / f for f in (WHOLE, *FITTED_ON)] if folder else [Path(self.extractor.weights).expanduser()]
        return "".join(f"# {f}: sha256 {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files_ if f.is_file())

    def run(self, folder: Path, seed: int, config: str) -> dict:
        """Train and evaluate; what a killed run left in the folder is gone on from. -> metrics, with their config."""
        stage = Stages()
        with stage("benchmark"):
            benchmark, images = self.data.load()
        if self.embedder and have_halves(Path(self.embedder)) and self.trained.get("images") != images.fingerprint:
            raise ValueError(
                f"The embedders in '{self.embedder}' were trained on other images, so it is not known which of these "
                "they have seen; train them on this benchmark, or without Embedding.halves."
            )
        with stage("descriptors"):
            train, made_by = self._describe(images, fitted=True)
            others = [self._describe(View(images, n), fitted=True)[0] for n in range(1, self.sampling.views)]
            (gallery, _), (queries, _) = self._describe(benchmark.gallery), self._describe(benchmark.queries)
        with stage("shortlists"):
            lists, validation, fitted, validating = self._training_lists(train, images, made_by)
            searches = self._searches(benchmark, queries, gallery)
        model = self.model(seed)
        if self.whitening is not None:
            assert isinstance(lists.descriptors, Descriptors)
            model.embedding.whiten(lists.descriptors, self.whitening)
        if others:
            rows = torch.from_numpy(fitted.indices)
            lists = replace(lists, descriptors=AnyView([each[rows] for each in (train, *others)]))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        embedder = None
        if self.embedder_rate:
            embedder = self.extractor.embedder().to(device)
            lists = replace(lists, descriptors=Live(embedder, self.extractor, fitted))

        lists_at_once = max(1, VALUES // (self.layout.tokens * model.encoder.hidden_size))

        def described_anew() -> Search:
            if not embedder:
                return validation
            table = Live(embedder, self.extractor, validating).all()
            return replace(validation, queries=table, gallery=table)

        def validate() -> dict[str, float]:
            reranked = described_anew().rerank(model, self.pass_size, lists_at_once, device)
            return {n: 100 * float(v.mean()) for n, v in validation.metrics(reranked.order).items()}

        with stage("training"):
            state = fit_reranker(
                model.to(device), lists, self.training, validate, folder, seed, embedder, self.embedder_rate
            )
        checkpoints.save(model, folder / "model.safetensors")
        if embedder:  # the shortlists stay, what is read of their images is new
            embedder.save(folder / WHOLE)
            tuned = replace(self.extractor, weights=str(folder / WHOLE))
            gallery, queries = tuned.extract(benchmark.gallery), tuned.extract(benchmark.queries)
            searches = {p: replace(s, queries=queries, gallery=gallery) for p, s in searches.items()}
        model.to(PRECISIONS[self.evaluated_in])
        with stage("evaluation"):
            ensemble = None
            if self.ensemble:
                held_out = described_anew().rerank(model, self.pass_size, lists_at_once, device)
                ensemble = Ensemble.fit(
                    held_out.similarities,
                    held_out.comparable_scores,
                    lambda order: validation.metrics(order)["mAP@R"].mean(),
                )
            tables, rankings = {}, {}
            for protocol, searched in searches.items():
                reranked = searched.rerank(self._windows(model), self.candidates, lists_at_once, device)
                orders = {"reranked": reranked.order}
                if ensemble and self.window:
                    windows = self._windows(model, ensemble)
                    orders["ensemble"] = searched.rerank(windows, self.candidates, lists_at_once, device).order
                elif ensemble:
                    orders["ensemble"] = reranked.ensemble(ensemble)
                rankings[protocol] = reranked
                tables[protocol] = summary(searched, orders, self.candidates)
            first = next(iter(searches))
            self._draw(folder, benchmark, searches[first], rankings[first].order, state["history"])
        stage.seconds["training"] = round(state["seconds"], 1)
        metrics = {
            "benchmark": benchmark.name,
            "backbone": self.backbone,
            "candidates": self.candidates,
            "protocol": first,
            **tables[first],
            "protocols": tables,
            "alpha": ensemble.alpha if ensemble else None,
            "temperature": ensemble.temperature if ensemble else None,
            "parameters": self.parameters,
            "seconds": stage.seconds,
            "latency_ms": round(rankings[first].milliseconds_a_list, 2),
            **provenance(seed, config),
        }
        files.write_text(folder / "queries.csv", _each_query(searches[first], rankings[first].order, benchmark))
        files.write_json(folder / "metrics.json", metrics)
        return metrics

    def _searches(self, benchmark: Benchmark, queries: Descriptors, gallery: Descriptors) -> dict[str, Search]:
        """The search of each protocol under which something can be asked, of the first in any case."""
        groups, own = benchmark.queries.labels, benchmark.self_index
        searches: dict[str, Search] = {}
        for protocol, answers in benchmark.protocols.items():
            try:
                searches[protocol] = Search.of(
                    queries, gallery, answers, groups, own, self.candidates, benchmark.measures
                )
            except NothingToAsk:
                if not searches:
                    raise
                log.warning("Under '%s' no query has a right image, so it is left out.", protocol)
        return searches

    def _windows(self, model: ListwiseReranker, ensemble: Ensemble | None = None) -> Reranker:
        """The model as it re-ranks all candidates."""
        return Windows(model, self.window, self.window // 2, ensemble=ensemble) if self.window else model

    def _draw(self, folder: Path, benchmark: Benchmark, searched: Search, order: Tensor, history: dict) -> None:
        pictures.lists(folder / "lists.png", searched, order.numpy(), benchmark.queries, benchmark.gallery, PICTURED)
        pictures.training(folder / "training.png", history)
        orders = {"global": None, "re-ranked": order, "oracle": searched.oracle(self.candidates)}
        right = {name: reordered(searched.right, o) for name, o in orders.items()}
        pictures.curves(folder / "curves.png", right)
        main = searched.measures.main
        before, after = (100 * searched.metrics(o)[main] for o in (None, order))
        pictures.gains(folder / "gains.png", before, after, main)

    def _describe(self, images: ImageSet, fitted: bool = False) -> tuple[Descriptors, np.ndarray]:
        """Descriptors, and (N,) by which embedder the global ones were made; only the same one's can be compared."""
        if self.embedder:
            return describe(Path(self.embedder), self.extractor, images, fitted)
        return self.extractor.extract(images), np.zeros(len(images), dtype=np.int64)

    def _training_lists(
        self, descriptors: Descriptors, images: ImageSet, made_by: np.ndarray
    ) -> tuple[Lists, Search, Subset, Subset]:
        """Lists of nine tenths of the training classes, a search over the others that validates, and images of both."""
        labels = images.labels
        known, counts = np.unique(labels[made_by == 0], return_counts=True)
        order = np.random.default_rng(0).permutation(len(known))
        classes, sums = known[order], np.cumsum(counts[order])
        fewest = int(np.searchsorted(sums, self.candidates, side="right")) + 1
        held_out = np.isin(labels, classes[: max(fewest, int(len(np.unique(labels)) * HELD_OUT))])
        rows, others = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        count, depth = self.sampling.sizes(self.pass_size)
        neighbours = np.empty((len(rows), depth), dtype=np.int64)
        for maker in np.unique(made_by):
            own = np.flatnonzero(made_by[rows] == maker)
            if len(own) <= depth:
                raise ValueError(
                    f"{len(labels)} training images are too few to train and to validate with lists from {depth} "
                    "neighbours; lower Experiment.candidates or Sampling.depth, or add classes."
                )
            globals_ = descriptors.global_[rows[own]].float().numpy()
            neighbours[own] = own[search(globals_, globals_, depth, np.arange(len(own))).indices]
        validating = descriptors[torch.from_numpy(others)]
        every = np.arange(len(others))
        answers = Relevance.from_labels(labels[others], labels[others], every)
        for row in np.random.default_rng(0).permutation(every)[VALIDATION_QUERIES:]:
            answers.positive[row] = np.empty(0, dtype=np.int64)  # is not asked
        validation = Search.of(
            validating, validating, answers, labels[others], every, self.candidates, MetricLearning((1,))
        )
        lists = Lists(descriptors[torch.from_numpy(rows)], neighbours, labels[rows], count, self.sampling)
        return lists, validation, images.subset(rows), images.subset(others)


def _finished(folder: Path) -> dict:
    """What `experiments.embed` measured.

    Raises:
        ValueError: it has not been there, or was broken off.
    """
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"'{folder}' is no finished run of experiments.embed; give its --out, or let it end first."
        ) from None


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Experiment, str]:
    """The experiment of these gin files, and its operative configuration, which says whether two runs are the same.

    Raises:
        ValueError: a file, a name or a value is wrong.
    """

    def make() -> Experiment:
        experiment = Experiment()
        _ = experiment.parameters  # what cannot be built is said now
        return experiment

    experiment, config = built(make, gin_files, overrides, seed)
    return experiment, config + experiment.weights_used()


def _each_query(searched: Search, order: Tensor, benchmark: Benchmark) -> str:
    """Every metric of every query before and after re-ranking, as comma-separated values."""
    columns: dict[str, Sequence] = {
        "query": [benchmark.queries.names[row] for row in searched.rows],
        "class": searched.groups.tolist(),
    }
    for method, places in (("global", None), ("reranked", order)):
        for name, values in searched.metrics(places).items():
            columns[f"{method} {name}"] = [f"{value:.5g}" for value in values]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def table(metrics: dict) -> str:
    """The result as text: under each protocol a row a method, then what re-ranking changed."""
    protocols = metrics["protocols"]
    parts = [f"{name}\n{_protocol(measured)}" for name, measured in protocols.items()]
    return "\n\n".join(parts) if len(protocols) > 1 else _protocol(metrics)


def _protocol(measured: dict) -> str:
    names = list(measured["global"])
    lines = ["            " + "".join(f"{n:>16}" for n in names)]
    methods = [method for method in ("global", "reranked", "ensemble", "oracle") if method in measured]
    for method in methods:
        lines.append(f"{method:<12}" + "".join(f"{measured[method][n]:>16.1f}" for n in names))
    for method in methods[1:-1]:
        gains = (f"{measured[method][n] - measured['global'][n]:+.1f}" for n in names)
        lines.append(f"Δ {method:<10}" + "".join(f"{gain:>16}" for gain in gains))
        bounds = (f"[{low:+.1f}, {high:+.1f}]" for low, high in (measured["difference"][method][n] for n in names))
        lines.append(f"{'  95 %':<12}" + "".join(f"{interval:>16}" for interval in bounds))
    unchanged = ", ".join(measured["unchanged"]) or "nothing"
    lines.append(f"shortlist recall {measured['shortlist_recall']:.1f}; re-ranking cannot change {unchanged}")
    return "\n".join(lines)
