"""Models on disk: of our own runs, and published ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from locore import published, weights
from locore.descriptors.extract import Extractor
from locore.reranking import pairwise
from locore.reranking.listwise import WEIGHTS, ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker


@dataclass(frozen=True)
class Trained:
    """What a re-ranker was trained on.

    Attributes:
        extractor: of the descriptors. candidates: K of its lists.
    """

    extractor: Extractor
    candidates: int


def save(model: ListwiseReranker | PairwiseReranker, path: Path, trained: Trained | None = None) -> None:
    """Write the weights, and what rebuilds the model, to one safetensors file, atomically.

    Args:
        trained: so that the model can be given images; None = what the model was loaded with, if anything.
    """
    if not isinstance(model.spec.get("encoder", ""), str):
        raise ValueError("Only a re-ranker whose encoder was given by name can be saved; register it first.")
    # In one text: of several, safetensors does not keep the order, and the same run would not end in the same bytes.
    known = asdict(trained) if trained else model.trained
    said = {**model.spec, **({"trained": known} if known else {})}
    weights.save(model, path, locore=json.dumps(said))


def trained_on(path: str | Path) -> Trained:
    """What the model of a run folder, or of a `model.safetensors`, was trained on.

    Raises:
        ValueError: there is no such file, or it does not say.
    """
    path = _file(path)
    _, said = _read(path)
    try:
        known = json.loads(said.get("locore", "{}")).get("trained")
        if known is None:
            raise ValueError(f"'{path}' does not say how its images were described; give the extractor.")
        files = _found(path.parent, known["extractor"])
        return Trained(Extractor(**{**known["extractor"], **files}), known["candidates"])
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"What '{path}' was trained on is damaged, or of another version; give the extractor."
        ) from error


def _found(folder: Path, extractor: dict[str, Any]) -> dict[str, str]:
    """Where the files of an extractor are, some of which may have been moved with its model."""
    return {name: _beside(folder, extractor[name]) for name in ("weights", "detector")}


def _beside(folder: Path, name: str) -> str:
    """A file by its path, or where a folder was moved the one beside its model; what is no file stays as it is."""
    moved = folder / Path(name).name
    return str(moved) if not Path(name).expanduser().exists() and moved.is_file() else name


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return weights.read(path) if path.suffix == ".safetensors" else (weights.state_dict(path), {})
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"No model at '{path}'; a finished run's folder has one.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged ({error}).") from error


def load(path: str | Path, dtype: torch.dtype = torch.float32, **untold) -> ListwiseReranker | PairwiseReranker:
    """The re-ranker of a run folder, of a `model.safetensors`, or of published weights, ready to re-rank.

    Args:
        path: published weights may also be torch's own files, read by its restricted loader.
        dtype: of weights and activations; torch.bfloat16 halves both (results/speed has what it costs).
        untold: what published weights do not say, see `locore.published.model`.

    Raises:
        ValueError: there is none, it is damaged, or it is neither ours nor published.
    """
    path = _file(path)
    tensors, said = _read(path)
    if "locore" not in said:
        model = published.model(tensors, str(path), **untold)
    elif untold:
        raise ValueError(f"'{path}' says itself how to build its model; leave out {', '.join(untold)}.")
    else:
        try:
            spec = json.loads(said["locore"])
            trained = spec.pop("trained", None)
            if trained:
                trained["extractor"] |= _found(path.parent, trained["extractor"])
            model = pairwise.create(**spec) if "method" in spec else ListwiseReranker(**spec)
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            raise ValueError(f"What '{path}' says of its model is damaged, or of another version.") from error
        weights.fill(model, tensors, str(path))
        model.trained = trained
    return model.to(dtype).eval()
