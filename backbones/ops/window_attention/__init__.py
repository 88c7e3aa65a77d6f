"""Attention within a window plus global tokens (Beltagy et al. 2020), without the quadratic matrix of scores.

`window_attention_reference` is the definition with its matrix of scores. On the CPU a tile of queries at a time runs
through PyTorch's fused kernel; on CUDA FlexAttention skips what the mask leaves empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from backbones._blocks import key_mask
from backbones.ops.window_attention.cuda import takes, window_flex_attention, window_mask
from backbones.ops.window_attention.reference import window_attention_reference
from backbones.ops.window_attention.tiles import Tile, tiled_attention, tiled_attention_with_dropout, tiles

__all__ = ["Window", "window_attention", "window_attention_reference"]


@dataclass(frozen=True)
class Window:
    """Which token attends to which: the same in every layer, so planned once a forward pass.

    Attributes:
        real: (B, T) bool, tokens that may be attended to.
        is_global: (T,) bool, tokens that everything attends to.
        reach: one-sided window in tokens.
        index: (G,) places of the global tokens.
        keys: `real` as an attention mask; None where all tokens are real.
        tiles: of queries, for the CPU and for dropout.
        block_mask: for FlexAttention; None where there are tiles.
        dropout: share of the attention weights that is dropped.
    """

    real: Tensor
    is_global: Tensor
    reach: int
    index: Tensor
    keys: Tensor | None
    tiles: list[Tile]
    block_mask: BlockMask | None
    dropout: float = 0.0

    @classmethod
    def plan(cls, real: Tensor, is_global: Tensor, reach: int, dropout: float = 0.0) -> Window:
        """Plan the attention of a batch; arguments as the attributes."""
        index, keys = is_global.nonzero().flatten(), key_mask(real)
        by_tiles = dropout > 0 or real.device.type == "cpu"
        # Where all tokens are real, one bias serves the whole batch.
        planned = list(tiles(real[:1] if keys is None else real, is_global, reach, index)) if by_tiles else []
        block_mask = window_mask(real, is_global, reach) if real.is_cuda and not by_tiles else None
        return cls(real, is_global, reach, index, keys, planned, block_mask, dropout)


def window_attention(query: Tensor, key: Tensor, value: Tensor, window: Window) -> Tensor:
    """Attend from each token to the real tokens at most `reach` away and to the real global tokens, each once.

    Args:
        query: (B, heads, T, d).
        key: (B, heads, T, d).
        value: (B, heads, T, d).
        window: the plan of this batch.

    Returns:
        (B, heads, T, d), laid out as (B, T, heads, d); zero for a token with nothing to attend to.
    """
    if window.dropout:
        return tiled_attention_with_dropout(query, key, value, window.tiles, window.index, window.dropout)
    if window.tiles:
        return tiled_attention(query, key, value, window.tiles, window.index)
    if window.block_mask is not None and takes(query):
        return window_flex_attention(query, key, value, window.block_mask)
    return window_attention_reference(query, key, value, window.real, window.is_global, window.reach)
