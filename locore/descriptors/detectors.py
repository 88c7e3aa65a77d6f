"""Detectors: the weights by which cells of a feature map become local descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from locore.descriptors.embedder import Embedder
from locore.descriptors.pooling import Attention


class Seen:
    """Attention of the class token in the last forward pass, (N, h·w)."""

    weights: Tensor


@contextmanager
def class_attention(network: Any) -> Iterator[Seen]:
    """Record, within the block, the attention of the class token in the network's last layer, averaged over heads.

    Raises:
        ValueError: the network is not a plain vision transformer with a class token.
    """
    plain = isinstance(network, VisionTransformer) and type(network.blocks[-1].attn) is vision_transformer.Attention
    if not plain or network.cls_token is None:
        raise ValueError(
            "Extractor.detector = 'class' works for timm's plain vision transformers with a class token; give 'norm', "
            "or a trained detector."
        )
    attention, first = network.blocks[-1].attn, network.num_prefix_tokens
    seen = Seen()

    def look(_, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0]
        query, key, _ = rearrange(attention.qkv(tokens), "n t (p h d) -> p n h t d", p=3, h=attention.num_heads)
        query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
        seen.weights = (attention.scale * query @ key.mT).softmax(dim=-1).mean(dim=(1, 2))[:, first:]

    handle = attention.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def trained_detector(embedder: Embedder) -> Attention:
    """Return the attention pooling of an embedder.

    Raises:
        ValueError: the embedder pools otherwise.
    """
    detector = embedder.pool
    if not isinstance(detector, Attention):
        raise ValueError(
            f"The embedder pools by '{embedder.spec['pooling']}', so it is not a detector; train one with "
            "gin/embed/detector.gin."
        )
    return detector.eval().requires_grad_(False)
