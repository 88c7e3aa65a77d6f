"""Small real inputs for tests: a folder of glyphs, and settings that run in seconds."""

from pathlib import Path

import numpy as np

from locore.datasets import benchmarks

QUICK = [
    "Extractor.image_size = 32",
    "Extractor.local_stage = 3",
    "Extractor.grid_size = 2",
    "Data.benchmark = 'folder'",
    "Reranking.candidates = 8",
    "query_attention.depth = 1",
    "query_attention.width = 32",
    "query_attention.heads = 2",
    "Training.steps = 6",
    "Training.batch_size = 4",
    "Training.validate_every = 2",
    "Training.warmup_steps = 2",
]


def write_glyphs(root: Path, classes: int = 24, images: int = 6) -> Path:
    """A folder with one sub-folder a class, of real renderings."""
    glyphs = benchmarks.create("glyphs").gallery
    for label in np.unique(glyphs.labels)[:classes]:
        for index in np.flatnonzero(glyphs.labels == label)[:images]:
            path = root / f"{label:05x}" / f"{glyphs.names[index].split()[1]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            glyphs.image(int(index)).save(path)
    return root
