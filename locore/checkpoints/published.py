"""Published weights under the names that their authors gave them: LOCORE's, and its rivals'."""

from __future__ import annotations

import inspect
import re

from torch import Tensor

from backbones.registry import suggest
from locore.reranking import pairwise
from locore.reranking.listwise import FIRST_ROW, ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.reranker import rerankers
from locore.utils import safetensors

# Published name (HuggingFace's Longformer below `language_model`) -> ours; the first match counts.
NAMES = [
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

SIZING = ("embedding.position.weight", "encoder.layers.0.intermediate.weight", "embedding.scale.weight")


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published LOCORE's state dict to the names of `ListwiseReranker` with a `longformer` encoder.

    Raises:
        ValueError: a name is not among the published ones.
    """
    renamed, unknown = {}, []
    for name, value in tensors.items():
        for pattern, ours in NAMES:
            if re.match(pattern, name):
                renamed[re.sub(pattern, ours, name, count=1)] = value[0] if "token_type" in name else value
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"These are tensors of no re-ranker that is known here: {safetensors.some(unknown)}.")
    return renamed


def build(tensors: dict[str, Tensor], source: str, **options) -> ListwiseReranker | PairwiseReranker:
    """Build the re-ranker that published weights belong to; its sizes are read from the tensors.

    Args:
        tensors: under the published names.
        source: where they are from, for messages.
        options: settings that tensors do not show: of LOCORE see `locore`, of another re-ranker its own, such as
            `heads`.

    Raises:
        ValueError: tensors are missing, left over, of the wrong shape, or of no known model.
    """
    heads = options.get("heads", 1)
    if not (heads is None or (isinstance(heads, int) and heads > 0)):
        raise ValueError(f"heads = {heads!r} must be a whole number above 0.")
    for method in filter(pairwise.is_learned, rerankers.available()):
        method_class: type[PairwiseReranker] = rerankers.entry(method).build  # type: ignore[assignment]
        try:
            shown = method_class.infer_settings(tensors)
        except KeyError as error:
            raise ValueError(f"'{source}' has weights of '{method}', but not all: {error} is missing.") from None
        except (ValueError, TypeError, IndexError):
            raise ValueError(f"'{source}' has weights of '{method}', but of other shapes.") from None
        if shown is None:
            continue
        widths = {name: shown.pop(name, None) for name in ("local_dim", "global_dim")}
        try:
            found = pairwise.create(method, "base", **widths, settings={**shown, **options})
        except (AssertionError, RuntimeError) as error:  # heads that do not divide the width
            raise ValueError(f"No '{method}' can be built with the sizes of '{source}': {error}.") from None
        safetensors.fill(found, tensors, source)
        return found
    known = [name for name in inspect.signature(locore).parameters if name not in ("tensors", "source")]
    for name in options:
        if name not in known:
            raise ValueError(f"The published LOCORE has no setting '{name}'{suggest(name, known)}")
    try:
        return locore(tensors, source, **options)
    except (TypeError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(
            f"'{source}' has tensors of other shapes than those of the published LOCORE ({error})."
        ) from None


def locore(
    tensors: dict[str, Tensor],
    source: str,
    heads: int | None = None,
    window: int | None = None,
    positions: str = "absolute",
    score: str = "sum",
    global_token: bool = True,
    activation: str = "gelu",
) -> ListwiseReranker:
    """Build the published LOCORE; what its tensors show is read from them.

    Args:
        tensors: under the published names.
        source: where they are from, for messages.
        heads: attention heads; None = heads of size 64.
        window: attention window; None = 1,024 at width 512, else 512, as published.
        positions: see `ListEmbedding`.
        score: see `ListwiseReranker`; the published "max-sum" is "sum".
        global_token: see `ListEmbedding`.
        activation: see `ListEmbedding`.

    Raises:
        ValueError: tensors are missing, left over or of the wrong shape.
    """
    renamed = from_published(tensors)
    if missing := [name for name in SIZING if name not in renamed]:
        raise ValueError(f"'{source}' is neither a model of ours nor a published one: it has no {', '.join(missing)}.")
    rows, width = renamed[SIZING[0]].shape
    inner, scales = (len(renamed[name]) for name in SIZING[1:])
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
            "depth": pairwise.count_layers(renamed, "encoder.layers."),
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
    safetensors.fill(model, renamed, source)
    return model
