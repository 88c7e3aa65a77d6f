"""Train global descriptors on a benchmark's training classes and measure them on its test classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from backbones.settings import check_types
from locore.datasets import Benchmark
from locore.descriptors.cross_fit import FITTED_ON, WHOLE, halves
from locore.descriptors.extractor import Extractor
from locore.evaluation.search import Search
from locore.metrics.bootstrap import interval
from locore.pipeline.settings import HELD_OUT, Data
from locore.report import pictures
from locore.report.text import bounds, text_row
from locore.training.embedder import Finetuning
from locore.training.loop import Training
from locore.utils import distributed, files
from locore.utils.provenance import provenance
from locore.utils.timing import Stages


@dataclass(frozen=True)
class Embedding:
    """A training of global descriptors; the seed and the run folder are given when it runs.

    Attributes:
        cross_fit: also train one embedder on each half of the training classes, so that training images can be
            described by an embedder that has not seen their class.
        data: the benchmark.
        extractor: its model, weights and image size are the start of the training.
        finetuning: what is trained, on which batches.
        training: settings of the loop.
    """

    cross_fit: bool = False
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=Extractor)
    finetuning: Finetuning = field(default_factory=Finetuning)
    training: Training = field(default_factory=Training)

    def __post_init__(self):
        check_types(self)
        if self.data.validation != HELD_OUT:
            raise ValueError("experiments.embed validates on held-out classes; leave Data.validation out.")
        _ = self.extractor.sizes

    def count_parameters(self) -> int:
        """Count the parameters of the network, without the head."""
        return sum(p.numel() for p in self.extractor.embedder().network.parameters())


def run_embedding(embedding: Embedding, folder: Path, seed: int, config: str) -> dict:
    """Train and measure, resuming an interrupted run in `folder`.

    Args:
        embedding: the settings.
        folder: of the embedders and the metrics.
        seed: of everything random.
        config: text that says what was run, kept in the metrics.

    Returns:
        The metrics, as `metrics.json` holds them.
    """
    stage, training = Stages(), embedding.training
    with stage("benchmark"):
        benchmark = embedding.data.load()
        train = embedding.data.training_images(benchmark)
    half = halves(train.labels)
    parts = {WHOLE: train}
    if embedding.cross_fit:
        parts |= {file: train.subset(np.flatnonzero(half == n)) for n, file in enumerate(FITTED_ON)}
    for images in parts.values():
        embedding.finetuning.split(images, training.batch_size)  # report what cannot be trained before the first hour
    for file, images in parts.items():
        work = folder / Path(file).stem
        embedder, state = embedding.finetuning.fit(embedding.extractor.embedder(), images, training, work, seed)
        stage.seconds[f"training {work.name}"] = round(state["seconds"], 1)
        if distributed.first():
            pictures.training(work / "training.png", state["history"])
            embedder.save(folder / file)
        distributed.wait()
    with stage("evaluation"):
        weights = {"before": embedding.extractor.weights, "trained": str(folder / WHOLE)}
        searches = {name: _search(embedding, benchmark, each) for name, each in weights.items()}
        values = {name: search.metrics(None) for name, search in searches.items()}
    metrics = {
        "benchmark": benchmark.name,
        **{name: {n: 100 * float(v.mean()) for n, v in found.items()} for name, found in values.items()},
        "difference": {
            n: [100 * bound for bound in interval(values["trained"][n] - v, searches["before"].groups)]
            for n, v in values["before"].items()
        },
        "queries": len(searches["before"].rows),
        "images": train.fingerprint,
        "seconds": stage.seconds,
        **provenance(seed, config),
    }
    if distributed.first():
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _search(embedding: Embedding, benchmark: Benchmark, weights: str) -> Search:
    """Search the benchmark by the global descriptors of some weights."""
    extractor = replace(embedding.extractor, weights=weights)
    queries, gallery = extractor.extract(benchmark.queries), extractor.extract(benchmark.gallery)
    return Search.build(benchmark, queries, gallery, candidates=1)


def embedding_table(metrics: dict) -> str:
    """Return the metrics of a run as text."""
    names = list(metrics["before"])
    measured = [text_row(row, (f"{metrics[row][n]:.1f}" for n in names)) for row in ("before", "trained")]
    changed = text_row("Δ 95 %", bounds(metrics["difference"][n] for n in names))
    return "\n".join([text_row("", names), *measured, changed])
