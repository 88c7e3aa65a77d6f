"""Rehearse a large gallery:  python -m experiments.rehearse --truth data/roxford5k --out data/rehearsal

Writes Revisited Oxford with distractors as files of random descriptors in AMES's formats, and tiny's weights at random,
so that time, memory and disk can be seen before the real files are there:

  python -m experiments.run --gin gin/landmarks/rehearsal.gin --out runs/rehearsal

A million distractors take 16 GB with 50 locals of 128 values, 80 GB with DINOv2's 768 (--local-dim 768). What such a
run finds means nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.command import guarded

LOCALS, GLOBAL = 50, 768
MARKER = "rehearsal.txt"  # in a folder that may be written over
AT_ONCE = 10_000  # images; so many have locals of their own, others have the same in other places


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.rehearse", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--truth", type=Path, required=True, help="folder with gnd_roxford5k.pkl")
    parser.add_argument("--distractors", type=int, default=1_001_001)
    parser.add_argument("--local-dim", type=int, default=128, help="width of a local descriptor")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    return guarded(lambda: _write(options))


def _write(options: argparse.Namespace) -> int:
    import torch

    from locore import checkpoints, files
    from locore.datasets import benchmarks
    from locore.descriptors import ames
    from locore.progress import track
    from locore.reranking import ListwiseReranker

    if options.distractors < 1:
        raise ValueError(f"--distractors {options.distractors} must be at least 1.")
    if options.local_dim < 1:
        raise ValueError(f"--local-dim {options.local_dim} must be at least 1.")
    marker = options.out / MARKER
    if options.out.exists() and any(options.out.iterdir()) and not marker.exists():
        raise ValueError(f"'{options.out}' has files that this command has not written; give another --out.")
    benchmark = benchmarks.create("roxford5k", root=str(options.truth))
    options.out.mkdir(parents=True, exist_ok=True)
    images = len(benchmark.queries) + len(benchmark.gallery) + options.distractors
    needed, free = images * (4 * GLOBAL + 2 * LOCALS * (5 + options.local_dim)), shutil.disk_usage(options.out).free
    if needed > free:
        raise ValueError(f"{images:,} images take {needed:,} bytes, and {free:,} are free; lower --distractors.")
    files.write_text(marker, "Made by experiments.rehearse: random descriptors and weights.\n")
    shutil.copy(options.truth / "gnd_roxford5k.pkl", options.out)
    files.write_text(options.out / "revisitop1m.txt", "".join(f"{n}.jpg\n" for n in range(options.distractors)))
    counts = {"query": len(benchmark.queries), "gallery": len(benchmark.gallery), "distractor": options.distractors}
    for name, images in counts.items():
        paths = (options.out / f"{name}_{kind}" for kind in ("global.f32", "local.hdf5"))
        parts = track(_made_up(name, images, options.local_dim), name, total=-(-images // AT_ONCE))
        ames.join(parts, images, *paths)
    torch.manual_seed(0)
    checkpoints.save(
        ListwiseReranker("longformer", options.local_dim, GLOBAL, max_positions=5120, size="tiny"),
        options.out / "model.safetensors",
    )
    return 0


def _made_up(name: str, images: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random unit vectors, a part at a time: (n, 768) and (n, 50, 5 + D), no descriptor missing."""
    from locore.descriptors.store import LEADING

    random = np.random.default_rng(list(name.encode()))
    features = np.zeros((min(AT_ONCE, images), LOCALS, LEADING + width), dtype=np.float16)
    features[..., :2] = random.random((*features.shape[:2], 2), dtype=np.float32)
    features[..., LEADING - 1] = 1
    features[..., LEADING:] = random.standard_normal((*features.shape[:2], width), dtype=np.float32) / width**0.5
    for start in range(0, images, AT_ONCE):
        rows = random.standard_normal((min(AT_ONCE, images - start), GLOBAL), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True), np.roll(features, start // AT_ONCE, 0)[: len(rows)]


if __name__ == "__main__":
    sys.exit(main())
