"""The hits of anyone's search, re-ranked: images in, an order out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backbones.registry import suggest
from locore import checkpoints
from locore.datasets.images import UNREADABLE, on_white
from locore.descriptors import Descriptors, Extractor
from locore.files import atomic, cache_folder
from locore.reranking.pairwise import is_learned
from locore.reranking.reranker import Reranker, Shortlist, rerankers

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Hit:
    """One of the images that were given.

    Attributes:
        index: its place among them. score: the re-ranker's; None where it gives an order alone.
    """

    index: int
    score: float | None


def rerank(
    query: Picture, hits: Sequence[Picture], reranker: str | Path | Reranker, extractor: Extractor | None = None
) -> list[Hit]:
    """Re-rank the hits of a search, the best first.

    Args:
        query: an image or its file. hits: likewise, in the order in which they were found.
        reranker: a run folder, the name of a re-ranker without weights ("geometric", "chamfer", …), or a re-ranker.
        extractor: of the descriptors; None = the one that the run was trained with, or the default one. Descriptors are
            kept on disk, by what is in an image.

    Raises:
        ValueError: there is no such re-ranker, or an image cannot be read.
    """
    if not hits:
        return []
    made, known = _made(reranker)
    described = _described([query, *hits], extractor or known)
    rows = torch.arange(1, len(hits) + 1)
    ranking = made.rerank(Shortlist.gather(described, torch.tensor([0]), described, rows[None]))
    order = ranking.order[0].tolist()
    scores = [None] * len(hits) if ranking.scores is None else ranking.scores[0].tolist()
    return [Hit(index, scores[index]) for index in order]


def _made(reranker: str | Path | Reranker) -> tuple[Reranker, Extractor]:
    """The re-ranker, and the extractor that comes with it."""
    if not isinstance(reranker, str | Path):
        return reranker, Extractor()
    if Path(reranker).exists():
        return checkpoints.load(reranker), checkpoints.extractor_of(reranker)
    untrained = [name for name in rerankers.available() if not is_learned(name)]
    if str(reranker) not in untrained:
        raise ValueError(
            f"'{reranker}' is no run folder, and no re-ranker without weights{suggest(str(reranker), untrained)}"
        )
    return rerankers.create(str(reranker)), Extractor()


def _described(pictures: Sequence[Picture], extractor: Extractor) -> Descriptors:
    """Descriptors of all, of which those that are new are extracted."""
    images = [_opened(picture) for picture in pictures]
    folder = cache_folder() / "images" / extractor.fingerprint
    paths = [folder / f"{hashlib.sha256(repr(i.size).encode() + i.tobytes()).hexdigest()}.npz" for i in images]
    known = {path: _kept(path) for path in paths}
    new = {path: image for path, image in zip(paths, images, strict=True) if known[path] is None}
    wanted = list(new)
    for start in range(0, len(wanted), extractor.batch):
        part = wanted[start : start + extractor.batch]
        found = extractor.describe([new[path] for path in part])
        for row, path in enumerate(part):
            known[path] = found[row]
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **{f.name: getattr(found[row], f.name).numpy() for f in fields(Descriptors)})
    return Descriptors.stack([each for path in paths if (each := known[path]) is not None])


def _kept(path: Path) -> Descriptors | None:
    """What was kept of an image; None = nothing, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Descriptors(*(torch.from_numpy(file[f.name]) for f in fields(Descriptors)))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return on_white(picture)
    try:
        with Image.open(picture) as image:
            return on_white(image)
    except UNREADABLE as error:
        raise ValueError(f"Cannot read the image '{picture}' ({error}).") from error
