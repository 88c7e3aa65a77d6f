"""Write the descriptors of a benchmark's images to the files that AMES and LOCORE read, and so does `Files`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backbones.settings import check_types
from locore.checkpoints import native
from locore.datasets import Benchmark, ImageSet
from locore.descriptors import ames_files, whitening
from locore.descriptors.extractor import Extractor
from locore.descriptors.table import LEADING, read_arrays
from locore.descriptors.whitening import Whitening
from locore.pipeline.settings import Data
from locore.utils import distributed, files
from locore.utils.provenance import provenance
from locore.utils.timing import Stages

FITTED_ON = 100_000  # descriptors that a whitening is estimated from
WHITENING = "whitening.safetensors"
PARTS = "parts"  # folder of what is described but not yet written
Parts = list[tuple[Path, int]]


@dataclass(frozen=True)
class Extraction:
    """What is extracted; the folder is given when it runs.

    Attributes:
        global_dim: width that global descriptors are whitened to; None = they stay as the model gives them.
        local_dim: width that local descriptors are whitened to; None = they stay as the model gives them.
        whiten: False = descriptors are projected to principal components and not whitened (PCA alone).
        bits: run folder or published weights of a re-ranker that makes bits of local descriptors, such as binary AMES;
            its bits are written instead of the descriptors. None = descriptors are written.
        whitening: folder of an extraction whose whitening is used; None = one is fitted on the training images, or, if
            the benchmark has none, on the gallery.
        data: the benchmark.
        extractor: of the descriptors.
    """

    global_dim: int | None = None
    local_dim: int | None = None
    whiten: bool = True
    bits: str | None = None
    whitening: str | None = None
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=Extractor)

    def __post_init__(self):
        check_types(self)
        _ = self.widths  # what the extractor cannot describe is reported now
        for name, dim in (("global", self.global_dim), ("local", self.local_dim)):
            if dim is not None and not 1 <= dim <= self.widths[name]:
                raise ValueError(f"Extraction.{name}_dim = {dim} must be in 1 to {self.widths[name]}, their width.")
        if not self.whiten and not (self.global_dim or self.local_dim):
            raise ValueError("Extraction.whiten = False is PCA alone; give Extraction.global_dim or local_dim.")
        if self.fitted and (self.global_dim or self.local_dim):
            raise ValueError("Extraction.whitening fixes the widths; leave Extraction.global_dim and local_dim out.")
        for name, known in (self.fitted or {}).items():
            if known.matrix.shape[1] != self.widths[name]:
                raise ValueError(
                    f"The whitening in '{self.whitening}' is of {name} descriptors of width {known.matrix.shape[1]}, "
                    f"and these have {self.widths[name]}."
                )

        if self.bits and (needed := len(self.to_bits)) != self.whitened_widths["local"]:
            raise ValueError(
                f"'{self.bits}' makes bits of local descriptors of width {needed}, and these have "
                f"{self.whitened_widths['local']}."
            )

    @cached_property
    def to_bits(self) -> np.ndarray:
        """(D, bits) directions whose signs are written."""
        matrix = _bit_directions(Path(self.bits or "").expanduser())
        if matrix.shape[1] % 8 or matrix.shape[1] == len(matrix):
            raise ValueError(
                f"'{self.bits}' makes {matrix.shape[1]} bits of {len(matrix)} numbers; files of bits need a multiple "
                "of 8 that differs from the width, by which they are told from descriptors."
            )
        return matrix

    @cached_property
    def widths(self) -> dict[str, int]:
        """Widths of the descriptors as the model gives them."""
        return dict(zip(("global", "local"), self.extractor.sizes, strict=True))

    @cached_property
    def fitted(self) -> dict[str, Whitening] | None:
        """The whitenings of another extraction; None = they are fitted here."""
        return whitening.load(Path(self.whitening).expanduser() / WHITENING) if self.whitening else None

    @property
    def written_widths(self) -> dict[str, int]:
        """Widths of what is written."""
        return {**self.whitened_widths, **({"local": self.to_bits.shape[1]} if self.bits else {})}

    @property
    def whitened_widths(self) -> dict[str, int]:
        """Widths after the whitening, if there is one."""
        asked = {"global": self.global_dim, "local": self.local_dim}
        known = {name: len(each.matrix) for name, each in (self.fitted or {}).items()}
        return {name: known.get(name) or asked[name] or width for name, width in self.widths.items()}


def run_extraction(extraction: Extraction, folder: Path, config: str, seed: int) -> dict:
    """Extract what is not there yet, resuming an interrupted extraction in `folder`.

    Args:
        extraction: the settings.
        folder: of the files.
        config: text that says what was run, kept in the metrics.
        seed: kept in the metrics.

    Returns:
        The metrics, as `metrics.json` holds them: what was written.
    """
    stage, extractor = Stages(), extraction.extractor
    with stage("benchmark"):
        benchmark = extraction.data.load()
    sets = _image_sets(benchmark)
    known = len(sets.get("train", sets["gallery"]))
    dims = {"global_dim": (extraction.global_dim, 1), "local_dim": (extraction.local_dim, extractor.locals_per_image)}
    for name, (dim, each) in dims.items():
        if dim and known * each <= dim:
            raise ValueError(f"{known} images are too few to whiten to Extraction.{name} = {dim}; lower it.")
    parts: dict[str, Parts] = {}
    for name, images in sets.items():
        with stage(f"describing {name}"):
            parts[name] = extractor.parts(images, folder / PARTS / name)
    with stage("writing"):
        if distributed.first():
            whitenings = extraction.fitted if extraction.fitted is not None else _fit(extraction, parts)
            if whitenings:
                whitening.save(folder / WHITENING, whitenings)
            for name, described in parts.items():
                paths = _paths(folder, name)
                tables = _whitened(described, whitenings)
                if extraction.bits:
                    tables = ((vectors, _as_bits(features, extraction.to_bits)) for vectors, features in tables)
                ames_files.write_joined(tables, len(sets[name]), *paths)
        distributed.wait()
    metrics = {
        "benchmark": benchmark.name,
        "images": {name: len(images) for name, images in sets.items()},
        "files": {name: [str(path) for path in _paths(folder, name)] for name in sets},
        "seconds": stage.seconds,
        **provenance(seed, config),
    }
    if distributed.first():
        files.write_json(folder / "metrics.json", metrics)
        shutil.rmtree(folder / PARTS)
    return metrics


def _bit_directions(path: Path) -> np.ndarray:
    """Return the directions (D, bits) in whose signs a re-ranker reads local descriptors.

    Raises:
        ValueError: there is no re-ranker, or it does not make bits.
    """
    reranker: Any = native.load(path)
    if not getattr(reranker, "bits", None):
        raise ValueError(f"'{path}' makes no bits of local descriptors; give an AMES or ELViS with the setting `bits`.")
    return reranker.remap_local[0].W.detach().numpy()


def _image_sets(benchmark: Benchmark) -> dict[str, ImageSet]:
    sets = {"query": benchmark.queries, "gallery": benchmark.gallery, "train": benchmark.train}
    return {name: images for name, images in sets.items() if images is not None}


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}_global.f32", folder / f"{name}_local.hdf5"


def _fit(extraction: Extraction, parts: dict[str, Parts]) -> dict[str, Whitening]:
    """Fit the whitenings of the widths that are asked for."""
    described = parts.get("train", parts["gallery"])
    asked = {"global": extraction.global_dim, "local": extraction.local_dim}
    return {name: Whitening.fit(_sample(described, name), dim, extraction.whiten) for name, dim in asked.items() if dim}


def _sample(parts: Parts, name: str) -> np.ndarray:
    """Draw descriptors (M, D) from all parts alike."""
    random, rows = np.random.default_rng(0), []
    for path, count in parts:
        vectors, features = read_arrays(path, count)
        every = vectors if name == "global" else features[..., LEADING:].reshape(-1, features.shape[2] - LEADING)
        rows.append(every[random.permutation(len(every))[: -(-FITTED_ON // len(parts))]])
    return np.concatenate(rows).astype(np.float32)


def _whitened(parts: Parts, whitenings: dict[str, Whitening]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `global` and `features` part by part."""
    for path, count in parts:
        vectors, features = read_arrays(path, count)
        if "global" in whitenings:
            vectors = whitenings["global"](vectors.astype(np.float32))
        if "local" in whitenings:
            leading, local = features[..., :LEADING], features[..., LEADING:]
            features = np.concatenate([leading, whitenings["local"](local)], axis=-1)
        yield vectors, features


def _as_bits(features: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return features with the signs of their local descriptors in some directions, packed."""
    local = features[..., LEADING:].astype(np.float32) @ directions
    return ames_files.pack_bits(np.concatenate([features[..., :LEADING], local], axis=-1))


def extraction_table(metrics: dict) -> str:
    """Return what was written, as text."""
    lines = [f"{metrics['images'][name]:>9,} {name:<8}{', '.join(paths)}" for name, paths in metrics["files"].items()]
    return "\n".join(lines)
