"""A pretrained language model as the start of a Longformer re-ranker (supplement, section A)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.longformer import Longformer
from locore.checkpoints import published
from locore.reranking.listwise import FIRST_ROW, ListwiseReranker
from locore.reranking.weights_file import WEIGHTS
from locore.utils import safetensors

NOT_USED = r"embeddings\.(word_embeddings|position_ids|token_type_ids)|pooler\.|lm_head\.|cls\."
PUBLISHED = {  # by the last part of the folder's name
    "longformer-base-4096": "allenai/longformer-base-4096",
    "roberta-tiny-cased": "haisongzhang/roberta-tiny-cased",
}
SEP, PAD = 2, 1  # RoBERTa's rows of the word table, unless its config says others


def start_from(model: ListwiseReranker, folder: str | Path) -> None:
    """Fill the encoder and the embedding with a language model's weights; projections, scales and head stay as they
    are.

    Positions of a Longformer are interpolated to as many as the re-ranker has, those of RoBERTa are repeated. RoBERTa
    has no projections of global tokens, so these become copies of the others. A re-ranker with fewer layers takes the
    first ones.

    Args:
        model: with a `longformer` encoder of the language model's width.
        folder: with `config.json` and `model.safetensors` or `pytorch_model.bin`, as on the hub.

    Raises:
        ValueError: a file is missing, or tensors are missing, left over or of the wrong shape.
    """
    if not isinstance(model.encoder, Longformer):
        raise ValueError("Only the backbone 'longformer' can start from a language model; set Model.backbone to it.")
    folder = Path(folder)
    tensors, config = _read(folder)
    tensors = {re.sub(r"^(longformer|roberta|bert)\.", "", name): value for name, value in tensors.items()}
    words = tensors.get("embeddings.word_embeddings.weight")
    tensors = {name: value for name, value in tensors.items() if not re.match(NOT_USED, name)}
    rows = tensors.get("embeddings.position_embeddings.weight")
    if words is None or rows is None or words.ndim != 2 or rows.ndim != 2 or len(rows) <= FIRST_ROW:
        raise ValueError(
            f"The tensors in '{folder}' do not belong to a Longformer or RoBERTa: they have no embeddings."
        )
    sep, pad = (config.get("sep_token_id") or config.get("eos_token_id") or SEP), (config.get("pad_token_id") or PAD)
    if not all(isinstance(token, int) and 0 <= token < len(words) for token in (sep, pad)):
        raise ValueError(f"'{folder / 'config.json'}' names tokens {sep} and {pad}, and there are {len(words)} words.")
    wanted = model.state_dict()
    depth = len(model.encoder.layers)
    layer = re.compile(r"encoder\.layer\.(\d+)\.")
    tensors = {n: v for n, v in tensors.items() if not (found := layer.match(n)) or int(found[1]) < depth}
    long = any("query_global" in name for name in tensors)
    if not long:
        tensors |= {
            re.sub(r"self\.(query|key|value)\.", r"self.\1_global.", n): v for n, v in tensors.items() if ".self." in n
        }
    tensors["embeddings.position_embeddings.weight"] = _positions(rows, len(wanted["embedding.position.weight"]), long)
    tensors["sep_embedding"], tensors["pad_embedding"] = words[sep], words[pad]
    started = published.from_published({f"language_model.longformer.{name}": v for name, v in tensors.items()})
    own = ("embedding.local", "embedding.global_", "embedding.scale", "embedding.match_of", "head", "log_residual")
    kept = {name: value for name, value in wanted.items() if name.startswith(own)}
    safetensors.fill(model, {**started, **kept}, str(folder))


def _positions(rows: Tensor, wanted: int, interpolated: bool) -> Tensor:
    """Return a position table of `wanted` rows; the first two rows are not positions and stay."""
    first, learned = rows[:FIRST_ROW], rows[FIRST_ROW:]
    if interpolated:
        size = wanted - FIRST_ROW
        stretched = F.interpolate(learned.T[None].float(), size=size, mode="linear", align_corners=True)[0].T
    else:
        stretched = learned.repeat(-(-wanted // len(learned)), 1)[: wanted - FIRST_ROW]
    return torch.cat([first, stretched.to(rows.dtype)])


def _read(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and the configuration of a model from a folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json has no settings")
        path = folder / WEIGHTS
        return safetensors.state_dict(path if path.exists() else folder / "pytorch_model.bin"), config
    except FileNotFoundError as error:
        where = f" from https://huggingface.co/{PUBLISHED[folder.name]}" if folder.name in PUBLISHED else ""
        raise ValueError(
            f"There is no language model in '{folder}': '{Path(error.filename).name}' is missing. Download config.json "
            f"and model.safetensors or pytorch_model.bin{where} to this folder, or start at random, which every table "
            'then says: --set "Model.language_model = None".'
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"The language model in '{folder}' is damaged ({error}).") from error
