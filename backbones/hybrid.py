"""Gated DeltaNet with attention over the list in every fourth layer, and query attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from backbones._interleaved import InterleavedEncoder
from backbones.gated_deltanet import BidirectionalDeltaNet
from backbones.list_attention import ListAttention
from backbones.registry import register

EVERY = 4  # layers, the last of which is attention


@register(
    "hybrid",
    mini={"width": 192, "depth": 4, "heads": 6, "key": 32, "value": 32, "expansion": 3.25},
    tiny={"width": 384, "depth": 6, "heads": 6},
    small={"width": 512, "depth": 11, "heads": 8},
    base={"width": 768, "depth": 9, "heads": 12},
)
class Hybrid(InterleavedEncoder):
    """The stack of `gated_deltanet`, with the layer of `list_attention` in the place of every fourth one.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: attention heads, of the list's and of query attention.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        key: K, width of a head's keys.
        value: V, width of a head's values.
        kernel: taps of the convolution.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        mixer_heads: int | None = None,
        key: int = 64,
        value: int = 64,
        kernel: int = 4,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads

        def mixers() -> Iterator[nn.Module]:
            for number in range(1, depth + 1):
                attends = number % EVERY == 0 or (depth < EVERY and number == depth)
                yield (
                    ListAttention(width, heads)
                    if attends
                    else BidirectionalDeltaNet(width, mixer_heads, key, value, kernel)
                )

        made = mixers()
        super().__init__(width, depth, lambda: next(made), query_attention_layers, heads, expansion)
