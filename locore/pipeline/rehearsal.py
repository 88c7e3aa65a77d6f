"""A landmark benchmark of random descriptors, to measure time, memory and disk before the real files are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from locore.checkpoints import native
from locore.datasets import benchmarks
from locore.descriptors import ames_files
from locore.descriptors.table import LEADING
from locore.reranking import ListwiseReranker
from locore.utils import files
from locore.utils.progress import track

LOCALS, GLOBAL_DIM = 50, 768
MARKER = "rehearsal.txt"  # in a folder that may be overwritten
PART = 10_000  # images; so many have locals of their own, others have the same ones in another order


def write(truth: Path, out: Path, distractors: int, local_dim: int) -> None:
    """Write Revisited Oxford with distractors as files of random descriptors, and random weights of LOCORE-tiny.

    Args:
        truth: folder with `gnd_roxford5k.pkl`.
        out: folder that is written.
        distractors: number of them.
        local_dim: width of a local descriptor.

    Raises:
        ValueError: a number is below 1, the folder has other files, or the disk is too small.
    """
    for option, value in (("--distractors", distractors), ("--local-dim", local_dim)):
        if value < 1:
            raise ValueError(f"{option} {value} must be at least 1.")
    marker = out / MARKER
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ValueError(f"'{out}' has files that this command has not written; give another --out.")
    benchmark = benchmarks.create("roxford5k", root=str(truth))
    out.mkdir(parents=True, exist_ok=True)
    images = len(benchmark.queries) + len(benchmark.gallery) + distractors
    needed, free = images * (4 * GLOBAL_DIM + 2 * LOCALS * (LEADING + local_dim)), shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(f"{images:,} images take {needed:,} bytes, and {free:,} are free; lower --distractors.")
    files.write_text(marker, "Written by experiments.extract --rehearse: random descriptors and weights.\n")
    shutil.copy(truth / "gnd_roxford5k.pkl", out)
    files.write_text(out / "revisitop1m.txt", "".join(f"{n}.jpg\n" for n in range(distractors)))
    counts = {"query": len(benchmark.queries), "gallery": len(benchmark.gallery), "distractor": distractors}
    for name, count in counts.items():
        paths = (out / f"{name}_{kind}" for kind in ("global.f32", "local.hdf5"))
        parts = track(_random_parts(name, count, local_dim), name, total=-(-count // PART))
        ames_files.write_joined(parts, count, *paths)
    torch.manual_seed(0)
    model = ListwiseReranker("longformer", local_dim, GLOBAL_DIM, max_positions=5120, size="tiny")
    native.save(model, out / "model.safetensors")


def _random_parts(name: str, images: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield random unit vectors (n, 768) and features (n, 50, 5 + D) without missing descriptors, part by part."""
    random = np.random.default_rng(list(name.encode()))
    features = np.zeros((min(PART, images), LOCALS, LEADING + width), dtype=np.float16)
    features[..., :2] = random.random((*features.shape[:2], 2), dtype=np.float32)
    features[..., LEADING - 1] = 1
    features[..., LEADING:] = random.standard_normal((*features.shape[:2], width), dtype=np.float32) / width**0.5
    for start in range(0, images, PART):
        rows = random.standard_normal((min(PART, images - start), GLOBAL_DIM), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True), np.roll(features, start // PART, 0)[: len(rows)]
