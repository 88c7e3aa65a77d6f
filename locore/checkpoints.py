"""Weights on disk: our own runs, and the published LOCORE."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from locore import weights
from locore.descriptors.extract import Extractor
from locore.reranking import pairwise
from locore.reranking.listwise import FIRST_ROW, WEIGHTS, ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker

# Published name (HuggingFace's Longformer below `language_model`) -> ours; the first match counts.
PUBLISHED = [
    (r"language_model\.classifier\.", "head."),
    (r"language_model\.longformer\.sep_embedding", "embedding.sep"),
    (r"language_model\.longformer\.pad_embedding", "embedding.pad"),
    (r"language_model\.longformer\.embeddings\.LayerNorm\.", "embedding.norm."),
    (r"language_model\.longformer\.embeddings\.position_embeddings\.", "embedding.position."),
    (r"language_model\.longformer\.embeddings\.token_type_embeddings\.weight", "embedding.token_type"),
    (r"language_model\.longformer\.encoder\.layer\.(\d+)\.attention\.self\.", r"encoder.layers.\1.attention."),
    (
        r"language_model\.longformer\.encoder\.layer\.(\d+)\.attention\.output\.dense\.",
        r"encoder.layers.\1.attention.output.",
    ),
    (
        r"language_model\.longformer\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.",
        r"encoder.layers.\1.attention_norm.",
    ),
    (r"language_model\.longformer\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"encoder.layers.\1.intermediate."),
    (r"language_model\.longformer\.encoder\.layer\.(\d+)\.output\.dense\.", r"encoder.layers.\1.output."),
    (r"language_model\.longformer\.encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"encoder.layers.\1.output_norm."),
    (r"scale_encoder\.", "embedding.scale."),
    (r"local_to_lm\.", "embedding.local."),
    (r"global_to_lm\.", "embedding.global_."),
]


def from_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published LOCORE's state dict under the names of `ListwiseReranker` with a `longformer` encoder.

    Raises:
        ValueError: a name is none of the published ones.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in PUBLISHED:
            if re.match(pattern, name):
                renamed[re.sub(pattern, ours, name, count=1)] = value[0] if "token_type" in name else value
                break
        else:
            raise ValueError(f"'{name}' is no tensor of a published LOCORE checkpoint.")
    return renamed


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
        return weights.read(path)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"No model at '{path}'; a finished run's folder has one.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged ({error}).") from error


def load(path: str | Path, dtype: torch.dtype = torch.float32, **published) -> ListwiseReranker | PairwiseReranker:
    """The re-ranker of a run folder, of a `model.safetensors`, or of the published LOCORE, ready to re-rank.

    Args:
        dtype: of weights and activations; torch.bfloat16 halves both (results/speed has what it costs).
        published: what the published file does not say, see `published_model`.

    Raises:
        ValueError: there is none, it is damaged, or it is neither ours nor the published one.
    """
    path = _file(path)
    tensors, said = _read(path)
    if "locore" not in said:
        model: ListwiseReranker | PairwiseReranker = published_model(tensors, str(path), **published)
    elif published:
        raise ValueError(f"'{path}' says itself how to build its model; leave out {', '.join(published)}.")
    else:
        try:
            spec = json.loads(said["locore"])
            trained = spec.pop("trained", None)
            if trained:
                trained["extractor"] |= _found(path.parent, trained["extractor"])
            model = pairwise.create(**spec) if "method" in spec else ListwiseReranker(**spec)
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"What '{path}' says of its model is damaged, or of another version.") from error
        fill(model, tensors, str(path))
        model.trained = trained
    return model.to(dtype).eval()


def published_model(
    tensors: dict[str, Tensor],
    said: str,
    heads: int | None = None,
    window: int | None = None,
    positions: str = "absolute",
    score: str = "sum",
    global_token: bool = True,
    activation: str = "gelu",
) -> ListwiseReranker:
    """The published LOCORE (reference: its `model.safetensors`); what its tensors show is read from them.

    Args:
        tensors: under the published names. said: where they are from, for messages.
        heads: None = heads of size 64. window: None = 1,024 at width 512, else 512, as published.
        positions, score, global_token, activation: see `ListwiseReranker`; the published score "max-sum" is "sum".

    Raises:
        ValueError: tensors are missing, left over or of the wrong shape.
    """
    renamed = from_published(tensors)
    try:
        rows, width = renamed["embedding.position.weight"].shape
        inner = len(renamed["encoder.layers.0.intermediate.weight"])
        scales = len(renamed["embedding.scale.weight"])
    except KeyError as error:
        raise ValueError(f"'{said}' is neither a model of ours nor the published LOCORE: it has no {error}.") from None
    projections = {
        name: [renamed[key] for key in (f"embedding.{name}.weight", f"embedding.{name}.0.weight") if key in renamed]
        for name in ("local", "global_")
    }
    two_layers = "embedding.local.0.weight" in renamed
    model = ListwiseReranker(
        "longformer",
        local_dim=projections["local"][0].shape[1] if projections["local"] else width,
        global_dim=projections["global_"][0].shape[1] if projections["global_"] else width,
        max_positions=rows - FIRST_ROW,
        settings={
            "width": width,
            "depth": 1 + max(int(name.split(".")[2]) for name in renamed if name.startswith("encoder.layers.")),
            "heads": heads or width // 64,
            "window": window or (1024 if width == 512 else 512),
            "expansion": inner / width,
        },
        global_token=global_token,
        positions=positions,
        score=score,
        scales=scales,
        force_projection=any(len(p) and p[0].shape[0] == p[0].shape[1] for p in projections.values()),
        bottleneck=len(renamed["embedding.local.0.weight"]) if two_layers else None,
        activation=activation,
    )
    fill(model, renamed, said)
    return model


def fill(model: torch.nn.Module, tensors: dict[str, Tensor], said: str) -> None:
    """Load a state dict whole.

    Raises:
        ValueError: tensors are missing, left over or of the wrong shape; the message lists them.
    """
    wanted = model.state_dict()
    wrong = {
        "missing": [name for name in wanted if name not in tensors],
        "left over": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"The tensors of '{said}' do not fit its model: {lists}.")
    model.load_state_dict(tensors)
