"""Attention within a window plus global tokens (Beltagy et al. 2020), without the quadratic matrix of scores.

`window_attention_reference` is the definition with its matrix of scores. On the CPU a tile of queries at a time runs
through PyTorch's fused kernel; its keys are the tile's neighbourhood and the global tokens, copied side by side into a
buffer that stays in the cache. On CUDA FlexAttention skips what the mask leaves empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from backbones.blocks import key_mask

QUERIES = 256  # queries a tile at most: more of them see too many keys for nothing, fewer starve the matrix products

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Tile:
    """Queries [start, stop) and their window of keys [low, high); bias (B or 1, 1, queries, keys + global tokens)."""

    start: int
    stop: int
    low: int
    high: int
    bias: Tensor


@dataclass(frozen=True)
class Window:
    """Who sees whom: the same in every layer, so made once a forward pass.

    Attributes:
        real: (B, T) bool, tokens that may be attended to. global_: (T,) bool, tokens that everything attends to.
        reach: one-sided window. index: (G,) places of the global tokens. keys: `real` as an attention mask, None where
            all are.
        tiles: of queries, for the CPU. block_mask: for FlexAttention, elsewhere None.
    """

    real: Tensor
    global_: Tensor
    reach: int
    index: Tensor
    keys: Tensor | None
    tiles: list[Tile]
    block_mask: BlockMask | None

    @classmethod
    def of(cls, real: Tensor, global_: Tensor, reach: int) -> Window:
        """Plan the attention of tokens `real` (B, T) with global tokens `global_` (T,)."""
        index, keys = global_.nonzero().flatten(), key_mask(real)
        on_cpu = real.device.type == "cpu"
        # Where all tokens are real, one bias serves the whole batch.
        tiles = list(_tiles(real[:1] if keys is None else real, global_, reach, index)) if on_cpu else []
        block_mask = _compiled(_block_mask)(real, global_, reach) if real.is_cuda else None
        return cls(real, global_, reach, index, keys, tiles, block_mask)


def _tiles(real: Tensor, global_: Tensor, reach: int, index: Tensor):
    tokens = len(global_)
    # As many queries as what every tile copies anew, its neighbours and the global tokens.
    size = min(max(reach, len(index), 32), QUERIES)
    # Query i of a tile and key j of its window, which begins `reach` before it: the same for every tile.
    band = (torch.arange(size)[:, None] + reach - torch.arange(size + 2 * reach)).abs() <= reach
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        low, high = max(start - reach, 0), min(stop + reach, tokens)
        near = band[: stop - start, low - start + reach : high - start + reach]
        near = near & (real & ~global_)[:, None, low:high]  # a global token inside the window counts once
        seen = torch.cat([near, real[:, None, index].expand(-1, stop - start, -1)], dim=2)
        yield Tile(start, stop, low, high, torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None])


def _block_mask(real: Tensor, global_: Tensor, reach: int) -> BlockMask:
    def seen(batch, _, query, key):
        return real[batch, key] & (((query - key).abs() <= reach) | global_[key])

    return create_block_mask(seen, len(real), None, len(global_), len(global_), device=real.device)


def window_attention(query: Tensor, key: Tensor, value: Tensor, window: Window) -> Tensor:
    """Each token attends to the real tokens at most `reach` away and to the real global tokens, each once.

    Args:
        query, key, value: (B, heads, T, d).

    Returns:
        (B, heads, T, d), laid out as (B, T, heads, d); zero for a token with nothing to attend to.
    """
    if window.tiles:
        return _Tiles.apply(query, key, value, window)
    if window.block_mask is not None and query.dtype != torch.float64 and query.shape[-1] >= 16:  # what it takes
        return _compiled(flex_attention)(query, key, value, block_mask=window.block_mask)
    return window_attention_reference(query, key, value, window)


@cache
def _compiled(function):
    return torch.compile(function, dynamic=True)


def window_attention_reference(query: Tensor, key: Tensor, value: Tensor, window: Window) -> Tensor:
    """The definition with its matrix of scores; arguments as `window_attention`."""
    position = torch.arange(query.shape[2], device=query.device)
    near = (position[:, None] - position).abs() <= window.reach
    seen = (near | window.global_)[None] & window.real[:, None]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num(0)
    return weights @ value


class _Tiles(torch.autograd.Function):
    """The tiles through the fused kernel, and back.

    By hand because autograd would fill a gradient as long as the sequence for every tile's slice of it.
    """

    @staticmethod
    def forward(ctx, query, key, value, window):
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = []
        extra = _rows(key, window.index), _rows(value, window.index)
        for tile in window.tiles:
            keys, values = (_beside(x, tile, more) for x, more in zip((key, value), extra, strict=True))
            part, log_sum = _forward(
                query[:, :, tile.start : tile.stop], keys, values, 0.0, False, attn_mask=tile.bias.to(query.dtype)
            )
            out[:, :, tile.start : tile.stop] = part
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, out, *sums = ctx.saved_tensors
        index = ctx.window.index
        extra = _rows(key, index), _rows(value, index)
        grad_query, *grads = (
            torch.zeros(x.transpose(1, 2).shape, dtype=x.dtype).transpose(1, 2) for x in (query, key, value)
        )
        for tile, log_sum in zip(ctx.window.tiles, sums, strict=True):
            keys, values = (_beside(x, tile, more) for x, more in zip((key, value), extra, strict=True))
            rows = slice(tile.start, tile.stop)
            grad_query[:, :, rows], *parts = _backward(
                grad[:, :, rows],
                query[:, :, rows],
                keys,
                values,
                out[:, :, rows],
                log_sum,
                0.0,
                False,
                attn_mask=tile.bias.to(query.dtype),
            )
            near = tile.high - tile.low
            for total, part in zip(grads, parts, strict=True):
                total[:, :, tile.low : tile.high] += part[:, :, :near]
                total.index_add_(2, index, part[:, :, near:])
        return grad_query, *grads, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The global tokens' rows of x (B, heads, T, d) -> (B, G, heads, d)."""
    return x.transpose(1, 2)[:, index]


def _beside(x: Tensor, tile: Tile, extra: Tensor) -> Tensor:
    """A tile's window of x and the global tokens' rows behind it, (B, heads, keys, d)."""
    return torch.cat([x[:, :, tile.low : tile.high].transpose(1, 2), extra], dim=1).transpose(1, 2)
