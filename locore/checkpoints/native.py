"""Our own checkpoints, and the door to published ones: `load`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from locore.checkpoints import published
from locore.descriptors.extractor import Extractor
from locore.reranking import pairwise, weights_file
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.weights_file import WEIGHTS
from locore.utils import safetensors


@dataclass(frozen=True)
class Trained:
    """What a re-ranker was trained on.

    Attributes:
        extractor: of the descriptors.
        candidates: K of its lists.
    """

    extractor: Extractor
    candidates: int


def save(model: ListwiseReranker | PairwiseReranker, path: Path, trained: Trained | None = None) -> None:
    """Write the weights of a re-ranker, and what rebuilds it, to one safetensors file, atomically.

    Args:
        model: the re-ranker.
        path: the file.
        trained: what it was trained on, so that it can be given images; None = what it was loaded with, if anything.
    """
    weights_file.write(model, path, model.spec, asdict(trained) if trained else model.trained)


def trained_on(path: str | Path) -> Trained:
    """Return what the model of a run folder, or of a `model.safetensors`, was trained on.

    Raises:
        ValueError: there is no such file, or it does not say.
    """
    path = _file(path)
    known = weights_file.read(path).trained
    if known is None:
        raise ValueError(f"'{path}' does not say how its images were described; give the extractor.")
    try:
        return Trained(Extractor(**_with_files_beside(path.parent, known["extractor"])), known["candidates"])
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"'{path}' has a damaged description of its extractor, or was written by another version; give the "
            "extractor."
        ) from error


def load(
    path: str | Path, dtype: torch.dtype | str = torch.float32, **options: Any
) -> ListwiseReranker | PairwiseReranker:
    """Load the re-ranker of a run folder, of a `model.safetensors`, or of published weights, ready to re-rank.

    Args:
        path: the folder or file. Published weights may also be files of torch.save, read by its restricted loader.
        dtype: of weights and activations; torch.bfloat16, or "bfloat16", halves both.
        options: of published weights, settings that they do not show, see `locore.checkpoints.published.build`; of a
            list-wise re-ranker of ours, `kept_locals` in the place of what it was trained with: fewer are faster.

    Raises:
        ValueError: the file is missing or damaged, or neither ours nor a published one; or the type or an option is not
            for it.
    """
    path, precision = _file(path), getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise ValueError(f"dtype = {dtype!r} must be a floating-point type of torch, such as torch.bfloat16.")
    tensors, spec, trained = weights_file.read(path)
    model: ListwiseReranker | PairwiseReranker
    if spec is None and any(name.startswith(("embedding.sep", "model.embedding.sep")) for name in tensors):
        raise ValueError(f"'{path}' is the state of a training; load its folder, or the '{WEIGHTS}' in it.")
    if spec is None:
        model = published.build(tensors, str(path), **options)
    elif unknown := sorted(set(options) - (set() if "method" in spec else {"kept_locals"})):
        raise ValueError(f"'{path}' says itself how to build its model; leave out {', '.join(unknown)}.")
    else:
        try:
            model = pairwise.create(**spec) if "method" in spec else ListwiseReranker(**spec | options)
            if trained:
                trained["extractor"] = _with_files_beside(path.parent, trained["extractor"])
        except (LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            raise ValueError(
                f"'{path}' has a damaged description of its model, or was written by another version."
            ) from error
        safetensors.fill(model, tensors, str(path))
        model.trained = trained
    return model.to(precision).eval()


def _with_files_beside(folder: Path, extractor: dict[str, Any]) -> dict[str, Any]:
    """Point an extractor's settings to files that were moved together with the model."""
    return {**extractor, **{name: _beside(folder, extractor[name]) for name in ("weights", "detector")}}


def _beside(folder: Path, name: str) -> str:
    """Return a file by its path, or the one beside the model if it was moved; what is not a file stays as it is."""
    moved = folder / Path(name).name
    return str(moved) if not Path(name).expanduser().exists() and moved.is_file() else name


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path
