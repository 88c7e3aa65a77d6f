"""Small real inputs for tests: a folder of glyphs, and settings that run in seconds."""

from functools import cache
from pathlib import Path

import numpy as np

from locore.datasets import ImageSet, benchmarks

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


@cache  # to read them takes a second
def glyphs() -> ImageSet:
    """Every rendered character that is searched on `glyphs`."""
    return benchmarks.create("glyphs").gallery


def write_glyphs(root: Path, classes: int = 24, images: int = 6) -> Path:
    """A folder with one sub-folder a class, of real renderings."""
    rendered = glyphs()
    for label in np.unique(rendered.labels)[:classes]:
        for index in np.flatnonzero(rendered.labels == label)[:images]:
            path = root / f"{label:05x}" / f"{rendered.names[index].split()[1]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rendered.image(int(index)).save(path)
    return root
