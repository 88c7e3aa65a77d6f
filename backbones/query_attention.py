"""Query attention alone: the stack of `mamba` and `rwkv` with no recurrent layer, which shows what recurrence adds."""

from __future__ import annotations

from backbones._interleaved import InterleavedEncoder
from backbones.registry import register


@register(
    "query_attention",
    mini={"width": 192, "depth": 4, "heads": 6, "expansion": 5.75},
    tiny={"width": 512, "depth": 6, "heads": 8},
    small={"width": 768, "depth": 8, "heads": 12},
    base={"width": 768, "depth": 16, "heads": 12},
)
class QueryAttentionOnly(InterleavedEncoder):
    """The stack of `mamba` and `rwkv` without a recurrent layer: a token sees its own image's query block only.

    Args:
        width: D.
        depth: number of layers.
        heads: attention heads.
        expansion: feed-forward width over D.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, expansion: float = 4):
        super().__init__(width, depth, None, None, heads, expansion)
        self.state_size = 0
