"""One training of global descriptors: benchmark, fine-tuning, measurement on the test classes, run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gin
import numpy as np

from backbones.settings import check_types
from experiments.configuration import built, extractor, finetuning, training
from experiments.data import Data
from experiments.provenance import provenance
from experiments.stages import Stages
from locore import files, processes
from locore.datasets import Benchmark
from locore.descriptors import Extractor
from locore.descriptors.finetune import Finetuning
from locore.descriptors.unseen import FITTED_ON, WHOLE, halves
from locore.evaluation import Search, interval
from locore.report import pictures
from locore.training import Training


@gin.configurable
@dataclass
class Embedding:
    """What to train; `seed` and the run folder come from the command line.

    Attributes:
        halves: also train one embedder on each half of the training classes.
        extractor: its model, weights and image size are what training starts from.
    """

    halves: bool = False
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=extractor)
    finetuning: Finetuning = field(default_factory=finetuning)
    training: Training = field(default_factory=training)

    def __post_init__(self):
        check_types(self)
        _ = self.extractor.sizes

    def parameters(self) -> int:
        """Of the network, without head."""
        return sum(p.numel() for p in self.extractor.embedder().network.parameters())

    def run(self, folder: Path, seed: int, config: str) -> dict:
        """Train and measure; what a killed run left in the folder is gone on from. -> metrics, with their config.

        Raises:
            ValueError: several processes were launched.
        """
        if processes.count() > 1:
            raise ValueError("These losses compare all images of a batch, so launch experiments.embed in one process.")
        stage = Stages()
        with stage("benchmark"):
            benchmark = self.data.load()
            train = self.data.training_images(benchmark)
        half = halves(train.labels)
        parts = {WHOLE: train}
        if self.halves:
            parts |= {f: train.subset(np.flatnonzero(half == n)) for n, f in enumerate(FITTED_ON)}
        for images in parts.values():
            self.finetuning.split(images, self.training.batch)  # what cannot be trained is said before the first hour
        for file, images in parts.items():
            work = folder / Path(file).stem
            embedder, state = self.finetuning.fit(self.extractor.embedder(), images, self.training, work, seed)
            stage.seconds[f"training {work.name}"] = round(state["seconds"], 1)
            pictures.training(work / "training.png", state["history"])
            embedder.save(folder / file)
        with stage("evaluation"):
            searches = {
                name: self._search(benchmark, weights)
                for name, weights in (("before", self.extractor.weights), ("trained", str(folder / WHOLE)))
            }
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
        files.write_json(folder / "metrics.json", metrics)
        return metrics

    def _search(self, benchmark: Benchmark, weights: str) -> Search:
        described = replace(self.extractor, weights=weights)
        queries, gallery = described.extract(benchmark.queries), described.extract(benchmark.gallery)
        answers, groups = next(iter(benchmark.protocols.values())), benchmark.queries.labels
        return Search.of(queries, gallery, answers, groups, benchmark.self_index, 1, benchmark.measures)


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Embedding, str]:
    """The training of these gin files, and its operative configuration; errors as `built`."""
    return built(Embedding, gin_files, overrides, seed)


def table(metrics: dict) -> str:
    """The result as text."""
    names = list(metrics["before"])
    lines = ["          " + "".join(f"{n:>16}" for n in names)]
    for row in ("before", "trained"):
        lines.append(f"{row:<10}" + "".join(f"{metrics[row][n]:>16.1f}" for n in names))
    bounds = (f"[{low:+.1f}, {high:+.1f}]" for low, high in (metrics["difference"][n] for n in names))
    lines.append(f"{'Δ 95 %':<10}" + "".join(f"{interval_:>16}" for interval_ in bounds))
    return "\n".join(lines)
