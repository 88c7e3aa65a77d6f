"""Which cells of a feature map become local descriptors: those with the highest weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from locore.descriptors.embedder import Embedder
from locore.descriptors.pooling import Attention


class Seen:
    """Where the class token looked, (N, h·w) of the last forward pass."""

    weights: Tensor


@contextmanager
def class_attention(network: Any) -> Iterator[Seen]:
    """Within the block, what the network's last layer attends to from its class token, in the mean over its heads.

    Raises:
        ValueError: the network is no plain vision transformer with a class token.
    """
    try:
        attention = network.blocks[-1].attn
        first, parts = network.num_prefix_tokens, (attention.qkv, attention.num_heads, attention.scale)
    except AttributeError:
        raise ValueError(
            "Extractor.detector = 'class' is for timm's plain vision transformers; give 'norm', or a trained detector."
        ) from None
    if network.cls_token is None:
        raise ValueError("Extractor.detector = 'class', but this model has no class token; give 'norm'.")
    project, heads, scale = parts
    seen = Seen()

    def look(_, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0]
        query, key, _ = project(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
        seen.weights = (scale * query @ key.mT).softmax(dim=-1).mean(dim=(1, 2))[:, first:]

    handle = attention.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def trained_detector(embedder: Embedder) -> Attention:
    """The attention of an embedder that pools with one.

    Raises:
        ValueError: it pools otherwise.
    """
    detector = embedder.pool
    if not isinstance(detector, Attention):
        raise ValueError(
            f"The embedder pools by '{embedder.spec['pooling']}', so it is no detector; train one with "
            "gin/embed/detector.gin."
        )
    return detector.eval().requires_grad_(False)
