"""One extraction: a benchmark's images to the files that AMES and LOCORE read, and so does `Files`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gin
import numpy as np

from backbones.settings import check_types
from experiments.configuration import built, extractor
from experiments.data import Data
from experiments.provenance import provenance
from experiments.stages import Stages
from locore import files, processes
from locore.datasets import Benchmark, ImageSet
from locore.descriptors import Extractor, ames, store, whitening
from locore.descriptors.store import LEADING
from locore.descriptors.whitening import Whitening

FITTED_ON = 100_000  # descriptors that a whitening is estimated from
WHITENING = "whitening.safetensors"
PARTS = "parts"  # folder of what is described but not written yet
Parts = list[tuple[Path, int]]


@gin.configurable
@dataclass
class Extraction:
    """What to extract; the folder comes from the command line.

    Attributes:
        global_dim, local_dim: widths that descriptors are whitened to; None = they stay as the model gives them.
        whitened: False = they are turned to that many principal components and not whitened (PCA alone).
        whitening: the folder of an extraction whose whitening is used; None = one is fitted on the training images, or
            where the benchmark has none on the gallery.
    """

    global_dim: int | None = None
    local_dim: int | None = None
    whitened: bool = True
    whitening: str | None = None
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=extractor)

    def __post_init__(self):
        check_types(self)
        self.widths = dict(zip(("global", "local"), self.extractor.sizes, strict=True))
        for name, dim in (("global", self.global_dim), ("local", self.local_dim)):
            if dim is not None and not 1 <= dim <= self.widths[name]:
                raise ValueError(f"Extraction.{name}_dim = {dim} must be in 1 to {self.widths[name]}, their width.")
        self.whitenings = whitening.load(Path(self.whitening).expanduser() / WHITENING) if self.whitening else None
        if not self.whitened and not (self.global_dim or self.local_dim):
            raise ValueError("Extraction.whitened = False is PCA alone; give Extraction.global_dim or local_dim.")
        if self.whitenings and (self.global_dim or self.local_dim):
            raise ValueError("Extraction.whitening has its widths, so leave Extraction.global_dim and local_dim out.")
        for name, known in (self.whitenings or {}).items():
            if known.matrix.shape[1] != self.widths[name]:
                raise ValueError(
                    f"The whitening in '{self.whitening}' is of {name} descriptors of width {known.matrix.shape[1]}, "
                    f"and these have {self.widths[name]}."
                )

    @property
    def written(self) -> dict[str, int]:
        """Widths of what is written."""
        asked = {"global": self.global_dim, "local": self.local_dim}
        known = {name: len(each.matrix) for name, each in (self.whitenings or {}).items()}
        return {name: known.get(name) or asked[name] or width for name, width in self.widths.items()}

    def run(self, folder: Path, config: str, seed: int) -> dict:
        """Extract what is not there yet. -> what was written, with the config."""
        stage = Stages()
        with stage("benchmark"):
            benchmark = self.data.load()
        sets = _image_sets(benchmark)
        known = len(sets.get("train", sets["gallery"]))
        dims = {"global_dim": (self.global_dim, 1), "local_dim": (self.local_dim, self.extractor.locals_per_image)}
        for name, (dim, each) in dims.items():
            if dim and known * each <= dim:
                raise ValueError(f"{known} images are too few to whiten to Extraction.{name} = {dim}; ask for less.")
        parts: dict[str, Parts] = {}
        for name, images in sets.items():
            with stage(f"describing {name}"):
                parts[name] = self.extractor.parts(images, folder / PARTS / name)
        with stage("writing"):
            if processes.first():
                whitenings = self.whitenings if self.whitenings is not None else self._fitted(parts)
                if whitenings:
                    whitening.save(folder / WHITENING, whitenings)
                for name, described in parts.items():
                    ames.join(_whitened(described, whitenings), len(sets[name]), *_files(folder, name))
            processes.wait()
        metrics = {
            "benchmark": benchmark.name,
            "images": {name: len(images) for name, images in sets.items()},
            "files": {name: [str(path) for path in _files(folder, name)] for name in sets},
            "seconds": stage.seconds,
            **provenance(seed, config),
        }
        if processes.first():
            files.write_json(folder / "metrics.json", metrics)
            shutil.rmtree(folder / PARTS)
        return metrics

    def _fitted(self, parts: dict[str, Parts]) -> dict[str, Whitening]:
        """Whitenings of the widths that are asked for."""
        described = parts.get("train", parts["gallery"])
        fitted = {}
        for name, dim in (("global", self.global_dim), ("local", self.local_dim)):
            if dim:
                fitted[name] = Whitening.fit(_sample(described, name), dim, self.whitened)
        return fitted


def _image_sets(benchmark: Benchmark) -> dict[str, ImageSet]:
    sets = {"query": benchmark.queries, "gallery": benchmark.gallery, "train": benchmark.train}
    return {name: images for name, images in sets.items() if images is not None}


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}_global.f32", folder / f"{name}_local.hdf5"


def _sample(parts: Parts, name: str) -> np.ndarray:
    """(M, D) descriptors drawn from all parts alike."""
    random, rows = np.random.default_rng(0), []
    for path, count in parts:
        globals_, features = store.read_arrays(path, count)
        every = globals_ if name == "global" else features[..., LEADING:].reshape(-1, features.shape[2] - LEADING)
        rows.append(every[random.permutation(len(every))[: -(-FITTED_ON // len(parts))]])
    return np.concatenate(rows).astype(np.float32)


def _whitened(parts: Parts, whitenings: dict[str, Whitening]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`global` and `features` part by part."""
    for path, count in parts:
        globals_, features = store.read_arrays(path, count)
        if "global" in whitenings:
            globals_ = whitenings["global"](globals_.astype(np.float32))
        if "local" in whitenings:
            leading, local = features[..., :LEADING], features[..., LEADING:]
            features = np.concatenate([leading, whitenings["local"](local)], axis=-1)
        yield globals_, features


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Extraction, str]:
    """The extraction of these gin files, and its operative configuration; errors as `built`."""
    extraction, config = built(Extraction, gin_files, overrides, seed)
    return extraction, f"{config}# extractor {extraction.extractor.fingerprint}\n"


def said(metrics: dict) -> str:
    """What was written, and how to use it."""
    lines = [f"{metrics['images'][name]:>9,} {name:<8}{', '.join(paths)}" for name, paths in metrics["files"].items()]
    return "\n".join(lines)
