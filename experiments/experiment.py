"""One experiment: benchmark, descriptors, shortlists, training, evaluation, run folder."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gin
import numpy as np
import torch

from backbones import ListLayout
from backbones.registry import suggest
from experiments.configuration import SETTINGS, extractor, parse, training
from locore import checkpoints, files
from locore.datasets import Relevance, benchmarks
from locore.descriptors import Descriptors, Extractor
from locore.evaluation import Search, summary
from locore.report import pictures
from locore.reranking import Ensemble, ListwiseReranker
from locore.retrieval import search
from locore.training import Lists, Training

log = logging.getLogger(__name__)

HELD_OUT = 0.1  # share of the training classes that validates, or as many as make one list
VALIDATION_QUERIES = 500
VALUES = 2**22  # values of a layer's tokens at a time in evaluation: as much memory for every length and width
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PICTURED = 8  # queries in lists.png


@gin.configurable
@dataclass
class Experiment:
    """What to run; `seed` and the run folder come from the command line.

    Attributes:
        benchmark, backbone, size: registered names. candidates: K.
        positions, score, global_token, dropout: see `ListwiseReranker`.
        whiten: start the projections as a whitening of the training descriptors.
        weights: what the trained model is evaluated in, "float32" or "bfloat16".
    """

    benchmark: str = "glyphs"
    backbone: str = "mamba"
    size: str = "mini"
    candidates: int = 24
    positions: str = "absolute"
    score: str = "mean"
    global_token: bool = True
    dropout: float = 0.0
    whiten: bool = True
    weights: str = "float32"
    extractor: Extractor = field(default_factory=extractor)
    training: Training = field(default_factory=training)

    def __post_init__(self):
        if self.weights not in WEIGHTS:
            raise ValueError(f"Unknown Experiment.weights '{self.weights}'{suggest(self.weights, WEIGHTS)}")
        benchmarks.entry(self.benchmark)
        self.benchmark_settings = SETTINGS[self.benchmark]()
        benchmarks.check(self.benchmark, **self.benchmark_settings)
        global_dim, local_dim = self.extractor.sizes
        self.layout = ListLayout(self.extractor.locals_per_image + 1 + self.global_token, 1 + self.candidates)
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
        return ListwiseReranker(**self.model_settings)

    def run(self, folder: Path, seed: int, config: str) -> dict:
        """Train and evaluate; what a killed run left in the folder is gone on from. -> metrics, with their config."""
        seconds: dict[str, float] = {}

        @contextmanager
        def stage(name: str):
            begun = time.perf_counter()
            yield
            seconds[name] = round(time.perf_counter() - begun, 1)
            log.info("%s: %.1f s", name, seconds[name])

        with stage("benchmark"):
            benchmark = benchmarks.create(self.benchmark, **self.benchmark_settings)
        if benchmark.train is None:
            raise ValueError(f"The benchmark '{self.benchmark}' has no training images.")
        with stage("descriptors"):
            train = self.extractor.extract(benchmark.train)
            gallery = self.extractor.extract(benchmark.gallery)
            queries = self.extractor.extract(benchmark.queries)
        with stage("shortlists"):
            lists, validation = self._training_lists(train, benchmark.train.labels)
            groups, own = benchmark.queries.labels, benchmark.self_index
            searches = {
                protocol: Search.of(queries, gallery, answers, groups, own, self.candidates, benchmark.ks)
                for protocol, answers in benchmark.protocols.items()
            }
        model = self.model(seed)
        if self.whiten:
            model.embedding.whiten(lists.descriptors)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        lists_at_once = max(1, VALUES // (self.layout.tokens * model.encoder.hidden_size))

        def validate(candidate: ListwiseReranker) -> dict[str, float]:
            reranked = validation.rerank(candidate, self.candidates, lists_at_once, device)
            return {n: 100 * float(v.mean()) for n, v in validation.metrics(reranked.order, (1,)).items()}

        with stage("training"):
            state = self.training.fit(model.to(device), lists, validate, folder, seed)
        checkpoints.save(model, folder / "model.safetensors")
        model.to(WEIGHTS[self.weights])
        with stage("evaluation"):
            tuned = validation.rerank(model, self.candidates, lists_at_once, device)
            ensemble = Ensemble.fit(
                tuned.similarities, tuned.comparable_scores, lambda order: validation.metrics(order, ())["mAP@R"].mean()
            )
            reranked = {p: s.rerank(model, self.candidates, lists_at_once, device) for p, s in searches.items()}
            tables = {p: summary(s, reranked[p], ensemble, self.candidates, benchmark.ks) for p, s in searches.items()}
            first = next(iter(searches))
            order = reranked[first].order.numpy()
            pictures.lists(folder / "lists.png", searches[first], order, benchmark.queries, benchmark.gallery, PICTURED)
            pictures.training(folder / "training.png", state["history"])
        seconds["training"] = round(state["seconds"], 1)
        metrics = {
            "benchmark": benchmark.name,
            "backbone": self.backbone,
            "candidates": self.candidates,
            "protocol": first,
            **tables[first],
            "protocols": tables,
            "alpha": ensemble.alpha,
            "temperature": ensemble.temperature,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "latency_ms": round(reranked[first].milliseconds_a_list, 2),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "seed": seed,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}",
            "commit": _commit(),
            "config": config,
            "versions": {
                "python": platform.python_version(),
                **{p: importlib.metadata.version(p) for p in ("torch", "timm", "numba", "faiss-cpu")},
            },
        }
        files.write_json(folder / "metrics.json", metrics)
        return metrics

    def _training_lists(self, descriptors: Descriptors, labels: np.ndarray) -> tuple[Lists, Search]:
        """Lists of nine tenths of the training classes, and a search over the rest that validates."""
        classes = np.random.default_rng(0).permutation(np.unique(labels))
        images = np.cumsum([np.count_nonzero(labels == label) for label in classes])
        fewest = int(np.searchsorted(images, self.candidates, side="right")) + 1
        held_out = np.isin(labels, classes[: max(fewest, int(len(classes) * HELD_OUT))])
        if np.count_nonzero(~held_out) <= self.candidates:
            raise ValueError(
                f"{len(labels)} training images are too few to train and to validate with lists of {self.candidates}; "
                "lower Experiment.candidates or add classes."
            )
        rows, others = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        fitted, validating = descriptors[torch.from_numpy(rows)], descriptors[torch.from_numpy(others)]
        globals_ = fitted.global_.float().numpy()
        neighbours = search(globals_, globals_, self.candidates, np.arange(len(rows)))
        asked = np.random.default_rng(0).permutation(len(others))[:VALIDATION_QUERIES]
        validation = Search.of(
            validating[torch.from_numpy(asked)],
            validating,
            Relevance.from_labels(labels[others][asked], labels[others], asked),
            labels[others][asked],
            asked,
            self.candidates,
        )
        return Lists(fitted, neighbours.indices, labels[rows]), validation


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Experiment, str]:
    """The experiment of these gin files, and its operative configuration, which says whether two runs are the same.

    Raises:
        ValueError: a file, a name or a value is wrong.
    """
    parse(gin_files, overrides)
    try:
        experiment = Experiment()
        experiment.model(seed)
    except (TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        # A setting of the wrong type or sign fails wherever it is first used, in torch, timm or our own code.
        raise ValueError(f"This configuration cannot be built: {error}.") from error
    return experiment, f"# seed {seed}\n{gin.operative_config_str()}"


def _commit() -> str:
    """The checkout's commit, with a plus where files differ from it (results apart); "none" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!results"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return name.stdout.strip() + "+" * changed.returncode


def table(metrics: dict) -> str:
    """The result as text: a row a method, then what re-ranking changed."""
    names = list(metrics["global"])
    lines = ["            " + "".join(f"{n:>16}" for n in names)]
    for method in ("global", "reranked", "ensemble", "oracle"):
        lines.append(f"{method:<12}" + "".join(f"{metrics[method][n]:>16.1f}" for n in names))
    for method, key in (("reranked", "difference"), ("ensemble", "difference_ensemble")):
        gains = (f"{metrics[method][n] - metrics['global'][n]:+.1f}" for n in names)
        lines.append(f"Δ {method:<10}" + "".join(f"{gain:>16}" for gain in gains))
        bounds = (f"[{low:+.1f}, {high:+.1f}]" for low, high in (metrics[key][n] for n in names))
        lines.append(f"{'  95 %':<12}" + "".join(f"{interval:>16}" for interval in bounds))
    lines.append(f"shortlist recall {metrics['shortlist_recall']:.1f}; unchanged by re-ranking: {metrics['unchanged']}")
    return "\n".join(lines)
