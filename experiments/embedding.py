"""One training of global descriptors: benchmark, fine-tuning, measurement on the test classes, run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gin
import numpy as np
import torch
from torch import Tensor

from experiments.configuration import SETTINGS, built, extractor, finetuning, training
from experiments.provenance import provenance
from experiments.stages import Stages
from locore import files
from locore.datasets import Benchmark, ImageSet, benchmarks
from locore.descriptors import Descriptors, Extractor
from locore.descriptors.finetune import Finetuning, halves
from locore.evaluation import Search, interval
from locore.report import pictures
from locore.training import Training

FILE = "embedder.safetensors"
HALF_FILES = ("fitted-on-half0.safetensors", "fitted-on-half1.safetensors")


@gin.configurable
@dataclass
class Embedding:
    """What to train; `seed` and the run folder come from the command line.

    Attributes:
        benchmark: a registered name. halves: also train one embedder on each half of the training classes.
        extractor: its model, weights and image size are what training starts from.
    """

    benchmark: str = "glyphs"
    halves: bool = False
    extractor: Extractor = field(default_factory=extractor)
    finetuning: Finetuning = field(default_factory=finetuning)
    training: Training = field(default_factory=training)

    def __post_init__(self):
        benchmarks.entry(self.benchmark)
        self.benchmark_settings = SETTINGS[self.benchmark]()
        benchmarks.check(self.benchmark, **self.benchmark_settings)
        _ = self.extractor.sizes

    def parameters(self) -> int:
        """Of the network that is trained, without head."""
        return sum(p.numel() for p in self.extractor.embedder().network.parameters())

    def run(self, folder: Path, seed: int, config: str) -> dict:
        """Train and measure; what a killed run left in the folder is gone on from. -> metrics, with their config."""
        stage = Stages()
        with stage("benchmark"):
            benchmark = benchmarks.create(self.benchmark, **self.benchmark_settings)
        if benchmark.train is None:
            raise ValueError(f"The benchmark '{self.benchmark}' has no training images.")
        half = halves(benchmark.train.labels)
        parts = [(FILE, np.arange(len(half)))]
        if self.halves:
            parts += [(name, np.flatnonzero(half == number)) for number, name in enumerate(HALF_FILES)]
        for file, rows in parts:
            if (folder / file).exists():
                continue
            work = folder / Path(file).stem
            embedder, state = self.finetuning.fit(
                self.extractor.embedder(), benchmark.train.subset(rows), self.training, work, seed
            )
            stage.seconds[f"training {work.name}"] = round(state["seconds"], 1)
            pictures.training(work / "training.png", state["history"])
            embedder.save(folder / file)
        with stage("evaluation"):
            searches = {
                name: self._search(benchmark, weights)
                for name, weights in (("before", self.extractor.weights), ("trained", str(folder / FILE)))
            }
            values = {name: search.metrics(None, benchmark.ks) for name, search in searches.items()}
        metrics = {
            "benchmark": benchmark.name,
            **{name: {n: 100 * float(v.mean()) for n, v in found.items()} for name, found in values.items()},
            "difference": {
                n: [100 * bound for bound in interval(values["trained"][n] - v, searches["before"].groups)]
                for n, v in values["before"].items()
            },
            "queries": len(searches["before"].rows),
            "seconds": stage.seconds,
            **provenance(seed, config),
        }
        files.write_json(folder / "metrics.json", metrics)
        return metrics

    def _search(self, benchmark: Benchmark, weights: str) -> Search:
        described = replace(self.extractor, weights=weights)
        queries, gallery = described.extract(benchmark.queries), described.extract(benchmark.gallery)
        answers, groups = next(iter(benchmark.protocols.values())), benchmark.queries.labels
        return Search.of(queries, gallery, answers, groups, benchmark.self_index, 1, benchmark.ks)


def describe(folder: Path, like: Extractor, images: ImageSet, fitted: bool) -> tuple[Descriptors, np.ndarray]:
    """Descriptors by the embedders in a folder, and (N,) which embedder made each.

    Where there are embedders of halves, an image that they were fitted on is described by the one that has never seen
    its class, as test images are. Their global descriptors are turned to lie as the whole embedder's do.

    Args:
        like: model, image size and locals. fitted: these are the images that the embedders were trained on.
    """

    def by(file: str) -> Descriptors:
        return replace(like, weights=str(folder / file)).extract(images)

    whole = by(FILE)
    if not (fitted and all((folder / file).exists() for file in HALF_FILES)):
        return whole, np.zeros(len(images), dtype=np.int64)
    made_by = 1 - halves(images.labels)
    first, second = (turned(by(file), whole.global_) for file in HALF_FILES)
    return Descriptors.where(torch.from_numpy(made_by == 0), first, second), made_by


def turned(descriptors: Descriptors, like: Tensor) -> Descriptors:
    """Global descriptors (N, D) turned, and mirrored if need be, to lie nearest to others of the same images.

    Orthogonal Procrustes (Schoenemann 1966): inner products among them stay what they are.
    """
    u, _, vh = torch.linalg.svd(descriptors.global_.double().T @ like.double())
    return replace(descriptors, global_=(descriptors.global_.double() @ (u @ vh)).to(like.dtype))


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Embedding, str]:
    """The training of these gin files, and its operative configuration; errors as `built`."""
    import experiments.experiment  # noqa: F401 - so that files of data, which bind both, can be read

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
