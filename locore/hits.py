"""The hits of anyone's search, re-ranked: images in, an order out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import nn

from backbones.registry import suggest
from locore import checkpoints
from locore.datasets.images import UNREADABLE, on_white
from locore.descriptors import Descriptors, Extractor
from locore.files import atomic, cache_folder
from locore.reranking.listwise import FIRST_ROW, ListwiseReranker
from locore.reranking.pairwise import is_learned
from locore.reranking.reranker import Reranker, Shortlist, rerankers
from locore.reranking.windows import Windows

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
        query: an image or its file. hits: likewise, in the order in which they were found; more than a list-wise model
            was trained on go through it in windows.
        reranker: a run folder, the name of a re-ranker without weights ("geometric", "chamfer", …), or a re-ranker:
            who asks many queries loads it once, and gives its extractor.
        extractor: of the descriptors; None = the one that the run was trained with, or without weights the default one.
            Descriptors are kept on disk, by what is in an image.

    Raises:
        ValueError: there is no such re-ranker, it reads other descriptors, or an image cannot be read.
    """
    if not hits:
        return []
    model, extractor, size = _made(reranker, extractor)
    device = next(model.parameters()).device if isinstance(model, nn.Module) else torch.device("cpu")
    described = _described([query, *hits], extractor)
    _fit_together(model, described)
    rows = torch.arange(1, len(hits) + 1)
    shortlist = Shortlist.gather(described, torch.tensor([0]), described, rows[None], device)
    if size and size < len(hits):
        model = Windows(model, size, max(size // 2, 1))
    ranking = model.rerank(shortlist)
    order = ranking.order[0].tolist()
    scores = [None] * len(hits) if ranking.scores is None else ranking.scores[0].tolist()
    return [Hit(index, scores[index]) for index in order]


def _made(reranker: str | Path | Reranker, extractor: Extractor | None) -> tuple[Reranker, Extractor, int | None]:
    """The re-ranker, the extractor of what it reads, and the K of its windows; None = it reads lists of any length."""
    if isinstance(reranker, str | Path) and not Path(reranker).exists():
        untrained = [name for name in rerankers.available() if not is_learned(name)]
        if str(reranker) not in untrained:
            near = suggest(str(reranker), untrained)
            raise ValueError(f"'{reranker}' is no run folder, and no re-ranker without weights{near}")
        return rerankers.create(str(reranker)), extractor or Extractor(), None
    if isinstance(reranker, str | Path):
        model = checkpoints.load(reranker)
        if extractor:
            return model, extractor, _longest(model, extractor)
        trained = checkpoints.trained_on(reranker)
        return model, trained.extractor, trained.candidates if isinstance(model, ListwiseReranker) else None
    if isinstance(reranker, nn.Module) and extractor is None:
        raise ValueError("A re-ranker with weights reads the descriptors that it was trained on; give the extractor.")
    extractor = extractor or Extractor()
    return reranker, extractor, _longest(reranker, extractor)


def _longest(model: object, extractor: Extractor) -> int | None:
    """How many candidates a list-wise model has positions for."""
    if not isinstance(model, ListwiseReranker) or model.embedding.positions == "none":
        return None
    rows = model.embedding.position.num_embeddings - FIRST_ROW
    block = 1 if model.embedding.positions == "segment" else model.embedding.layout(extractor.locals_per_image, 1).block
    return rows // block - 1


def _fit_together(model: object, described: Descriptors) -> None:
    """Refuse descriptors that a model cannot read."""
    found = {"local_dim": described.local.shape[-1], "global_dim": described.global_.shape[-1]}
    for name, width in found.items():
        wanted = getattr(model, "spec", {}).get(name, width)
        if wanted != width:
            raise ValueError(
                f"The re-ranker reads descriptors of {name} {wanted}, these have {width}; give its extractor."
            )


def _described(pictures: Sequence[Picture], extractor: Extractor) -> Descriptors:
    """Descriptors of all, of which those that are new are extracted, a batch at a time."""
    folder = cache_folder() / "images" / extractor.fingerprint
    paths = [folder / f"{_key(picture)}.npz" for picture in pictures]
    known = {path: _kept(path) for path in paths}
    new = [(path, picture) for path, picture in dict(zip(paths, pictures, strict=True)).items() if known[path] is None]
    for start in range(0, len(new), extractor.batch):
        part = new[start : start + extractor.batch]
        found = extractor.describe([_opened(picture) for _, picture in part])
        for row, (path, _) in enumerate(part):
            known[path] = found[row]
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **{f.name: getattr(found[row], f.name).numpy() for f in fields(Descriptors)})
    return Descriptors.stack([each for path in paths if (each := known[path]) is not None])


def _key(picture: Picture) -> str:
    """Changes with what is in an image."""
    if isinstance(picture, Image.Image):
        pixels = on_white(picture)
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    try:
        return hashlib.sha256(Path(picture).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"Cannot read the image '{picture}' ({error}).") from error


def _kept(path: Path) -> Descriptors | None:
    """What was kept of an image; None = nothing, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Descriptors(*(torch.from_numpy(file[f.name]) for f in fields(Descriptors)))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return on_white(picture)
    try:
        with Image.open(picture) as image:
            return on_white(image)
    except UNREADABLE as error:
        raise ValueError(f"Cannot read the image '{picture}' ({error}).") from error
