"""Attention over the whole list in place of the recurrent layer of `mamba` and `rwkv`, with query attention."""

from __future__ import annotations

from torch import Tensor, nn

from backbones._blocks import Attention, key_mask
from backbones._interleaved import InterleavedEncoder
from backbones.encoder import ListLayout
from backbones.registry import register


class ListAttention(nn.Module):
    """One residual layer in which every token attends to every token of the list, after a layer norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Attend over the list: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        normed = self.norm(tokens)
        return tokens + self.attention(normed, normed, None if mask is None else key_mask(mask))


@register(
    "list_attention",
    mini={"width": 192, "depth": 4, "heads": 6, "expansion": 3.75},
    tiny={"width": 512, "depth": 6, "heads": 8, "expansion": 2},
    small={"width": 768, "depth": 8, "heads": 12, "expansion": 2},
    base={"width": 768, "depth": 16, "heads": 12, "expansion": 2},
)
class ListAttentionEncoder(InterleavedEncoder):
    """The stack of `mamba` and `rwkv` with attention over the list as its mixer; time quadratic in T.

    Args:
        width: D.
        depth: number of layers.
        heads: attention heads, of the list's and of query attention.
        expansion: feed-forward width over D.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, expansion: float = 4):
        super().__init__(width, depth, lambda: ListAttention(width, heads), None, heads, expansion)
