"""Window attention on a GPU: FlexAttention skips the blocks that the mask leaves empty."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def window_mask(real: Tensor, is_global: Tensor, reach: int) -> BlockMask:
    """Plan FlexAttention, compiled; arguments as the attributes of `Window`."""
    return _compiled(block_mask)(real, is_global, reach)


def window_flex_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention under the mask of `window_mask`, compiled; other arguments and result as `window_attention`."""
    return _compiled(flex_attention)(query, key, value, block_mask=mask)


def takes(query: Tensor) -> bool:
    """Return whether FlexAttention takes these queries (B, heads, T, d)."""
    return query.dtype != torch.float64 and query.shape[-1] >= 16


def block_mask(real: Tensor, is_global: Tensor, reach: int) -> BlockMask:
    """Build the mask of FlexAttention, not compiled."""

    def seen(batch, _, query, key):
        return real[batch, key] & (((query - key).abs() <= reach) | is_global[key])

    return create_block_mask(seen, len(real), None, len(is_global), len(is_global), device=real.device)


@cache
def _compiled(function):
    return torch.compile(function, dynamic=True)
