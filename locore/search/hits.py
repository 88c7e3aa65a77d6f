"""Re-rank the hits of any search: images in, an order out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.registry import suggest
from locore.checkpoints import native
from locore.checkpoints.pretrained import OF_PHOTOS, SYNTHETIC
from locore.descriptors import Descriptors, Extractor
from locore.descriptors.image_cache import Picture, describe_cached
from locore.reranking.ensemble import StandardisedEnsemble, WithSearch, default_ensemble
from locore.reranking.listwise import FIRST_ROW, ListwiseReranker
from locore.reranking.pairwise import without_weights
from locore.reranking.reranker import Reranker, Shortlist, describe_mismatch, rerankers
from locore.reranking.weights_file import WEIGHTS
from locore.reranking.windows import Windows

DEFAULT, OF_OTHER_DESCRIPTORS = SYNTHETIC, "chamfer"
SYNTHETIC_SEARCH_WEIGHT = 0.5  # chosen as those of re-rankers without weights, see `default_ensemble`
PHOTOS: dict[str, Any] = {
    "image_size": 224,
    "pooling": "gem",
    "local_stage": 3,
    "grid_size": 7,
}  # of an extractor without a download


@dataclass(frozen=True)
class Hit:
    """One of the given images.

    Attributes:
        index: its place among the given images.
        score: of the re-ranker; None if it gives an order alone.
    """

    index: int
    score: float | None


def rerank(
    query: Picture,
    hits: Iterable[Picture],
    reranker: str | Path | Reranker | None = None,
    extractor: Extractor | None = None,
) -> list[Hit]:
    """Re-rank the hits of a search, best first.

    Args:
        query: an image: the path of its file, the bytes of its file, an open file, a PIL image, or an array
            (height, width, 3) of uint8.
        hits: images, in the order in which they were found. More of them than a list-wise model was trained on are
            re-ranked in windows.
        reranker: the name of a re-ranker without weights ("chamfer", "geometric", …), or "synthetic", a list-wise one
            that was trained without images, whose scores are combined with the similarity of global descriptors; a run
            folder; or a re-ranker: for many queries, load it once and give its extractor. None = "synthetic", or, for
            the descriptors of a given extractor, "chamfer".
        extractor: of the descriptors; None = the one that the run was trained with, or, without weights, one for
            photos. Descriptors are cached on disk by the content of an image.

    Raises:
        ValueError: there is no such re-ranker, it reads other descriptors, or an image cannot be read.
    """
    if isinstance(hits, str | bytes | Path | Set | Mapping) or not isinstance(hits, Iterable):
        raise ValueError(f"hits must be a list of images, in the order of the search, not a {type(hits).__name__}.")
    pictures = {"query": query, **{f"hits[{number}]": hit for number, hit in enumerate(hits)}}
    if len(pictures) == 1:
        return []
    model, extractor, size = load_with_extractor(reranker, extractor)
    found = describe_cached(pictures, extractor)
    return rerank_described(model, size, found[torch.tensor([0])], found[torch.arange(1, len(found))])


def rerank_described(model: Reranker, size: int | None, query: Descriptors, hits: Descriptors) -> list[Hit]:
    """Re-rank hits by their descriptors.

    Args:
        model: the re-ranker.
        size: K of the windows of longer lists; None = lists of any length.
        query: descriptors of one image, (1, …).
        hits: descriptors (K, …).

    Raises:
        ValueError: the re-ranker reads other descriptors.
    """
    if other := describe_mismatch(model, hits):
        raise ValueError(f"The re-ranker reads {other}; give its extractor.")
    device = next(model.parameters()).device if isinstance(model, nn.Module) else torch.device("cpu")
    shortlist = Shortlist.gather(query, torch.tensor([0]), hits, torch.arange(len(hits))[None], device)
    if size and size < len(hits):
        model = Windows(model, size, max(size // 2, 1))
    ranking = model.rerank(shortlist)
    order = ranking.order[0].tolist()
    scores = [None] * len(hits) if ranking.scores is None else ranking.scores[0].tolist()
    return [Hit(index, scores[index]) for index in order]


def load_with_extractor(
    reranker: str | Path | Reranker | None = None, extractor: Extractor | None = None
) -> tuple[Reranker, Extractor, int | None]:
    """Load a re-ranker together with the extractor of the descriptors that it reads; arguments and errors as `rerank`.

    Returns:
        The re-ranker, the extractor, and K of its windows (None = it reads lists of any length).
    """
    if reranker is None:
        reranker = OF_OTHER_DESCRIPTORS if extractor else DEFAULT
    if reranker == SYNTHETIC:
        with_search = WithSearch(native.load(OF_PHOTOS), StandardisedEnsemble(SYNTHETIC_SEARCH_WEIGHT))
        return with_search, extractor or Extractor(**PHOTOS), None
    untrained = without_weights()
    if isinstance(reranker, str | Path) and (str(reranker) in untrained or not Path(reranker).expanduser().exists()):
        if str(reranker) not in untrained:
            near = suggest(str(reranker), [*untrained, SYNTHETIC])
            raise ValueError(f"'{reranker}' is neither a run folder nor a re-ranker without weights{near}")
        found = rerankers.create(str(reranker))
        own = getattr(found, "extractor", {})  # of one that reads keypoints of a kind
        return WithSearch(found, default_ensemble(found)), extractor or Extractor(**{**PHOTOS, **own}), None
    if isinstance(reranker, str | Path):
        reranker = Path(reranker).expanduser()
        if (reranker / "metrics.json").exists() and not (reranker / WEIGHTS).exists():
            raise ValueError(f"'{reranker}' is a run without weights; give the name of its re-ranker instead.")
        model = native.load(reranker)
        if extractor:
            return model, extractor, _longest(model, extractor)
        trained = native.trained_on(reranker)
        any_length = not isinstance(model, ListwiseReranker) or model.embedding.positions == "none"
        return model, trained.extractor, None if any_length else trained.candidates
    if isinstance(reranker, type) or not callable(getattr(reranker, "rerank", None)):
        raise ValueError(f"{reranker!r} is not a re-ranker; give a name, a run folder, or a re-ranker that was made.")
    if isinstance(reranker, nn.Module) and extractor is None:
        raise ValueError("A re-ranker with weights reads the descriptors that it was trained on; give the extractor.")
    extractor = extractor or Extractor(**PHOTOS)
    return reranker, extractor, _longest(reranker, extractor)


def _longest(model: object, extractor: Extractor) -> int | None:
    """Return the number of candidates that a list-wise model has positions for."""
    if not isinstance(model, ListwiseReranker) or model.embedding.positions == "none":
        return None
    rows = model.embedding.position.num_embeddings - FIRST_ROW
    block = 1 if model.embedding.positions == "segment" else model.embedding.layout(extractor.locals_per_image, 1).block
    return max(rows // block - 1, 1)
