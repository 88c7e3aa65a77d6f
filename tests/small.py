"""Small real inputs for tests: a folder of glyphs, and settings that run in seconds."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from locore.datasets import benchmarks
from locore.descriptors import Descriptors
from locore.reranking import Shortlist

QUICK = [
    "Extractor.image_size = 32",
    "Extractor.local_stage = 3",
    "Extractor.grid = 2",
    "Experiment.benchmark = 'folder'",
    "Experiment.candidates = 8",
    "query_attention.depth = 1",
    "query_attention.width = 32",
    "query_attention.heads = 2",
    "Training.steps = 6",
    "Training.batch = 4",
    "Training.validate_every = 2",
    "Training.warmup = 2",
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


def random_shortlist(batch: int, candidates: int, locals_: int, local_dim: int, global_dim: int) -> Shortlist:
    """A shortlist of random unit descriptors, to try a re-ranker on."""

    def descriptors(*lead: int) -> Descriptors:
        return Descriptors(
            global_=F.normalize(torch.randn(*lead, global_dim), dim=-1),
            local=F.normalize(torch.randn(*lead, locals_, local_dim), dim=-1),
            position=torch.rand(*lead, locals_, 2),
            scale=torch.zeros(*lead, locals_, dtype=torch.long),
            mask=torch.ones(*lead, locals_, dtype=torch.bool),
            weight=torch.ones(*lead, locals_),
        )

    query, listed = descriptors(batch), descriptors(batch, candidates)
    return Shortlist(torch.einsum("bd,bkd->bk", query.global_, listed.global_), query, listed)
