"""Weights on disk: our own runs, and the names of the published LOCORE."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from locore import weights
from locore.reranking.listwise import ListwiseReranker

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


def save(model: ListwiseReranker, path: Path) -> None:
    """Write the weights, and what rebuilds the model, to one safetensors file, atomically."""
    if not isinstance(model.spec["encoder"], str):
        raise ValueError("Only a re-ranker whose encoder was given by name can be saved; register it first.")
    weights.save(model, path, locore=json.dumps(model.spec))


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> ListwiseReranker:
    """The re-ranker of a run folder, or of a `model.safetensors`, ready to re-rank.

    Args:
        dtype: of weights and activations; torch.bfloat16 halves both (results/speed has what it costs).

    Raises:
        ValueError: there is none, it is damaged, or it is not one of ours.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        tensors, said = weights.read(path)
    except FileNotFoundError:
        raise ValueError(f"No model at '{path}'; a finished run's folder has one.") from None
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged ({error}).") from error
    if "locore" not in said:
        raise ValueError(f"'{path}' was not written by LOCORE: it does not say how to build its model.")
    model = ListwiseReranker(**json.loads(said["locore"]))
    model.load_state_dict(tensors)
    return model.to(dtype).eval()
