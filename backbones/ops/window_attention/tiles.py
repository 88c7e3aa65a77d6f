"""Window attention by tiles: on the CPU a tile of queries at a time through PyTorch's fused kernel.

A tile's keys are its neighbourhood and the global tokens, copied side by side into a buffer that stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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


def tiles(real: Tensor, is_global: Tensor, reach: int, index: Tensor) -> Iterator[Tile]:
    """Plan the tiles of a sequence; arguments as the attributes of `Window`."""
    tokens = len(is_global)
    # As many queries as what every tile copies anew, its neighbours and the global tokens.
    size = min(max(reach, len(index), 32), QUERIES)
    # Query i of a tile and key j of its window, which begins `reach` before it: the same for every tile.
    device = real.device
    places, keys = torch.arange(size, device=device), torch.arange(size + 2 * reach, device=device)
    band = (places[:, None] + reach - keys).abs() <= reach
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        low, high = max(start - reach, 0), min(stop + reach, tokens)
        near = band[: stop - start, low - start + reach : high - start + reach]
        near = near & (real & ~is_global)[:, None, low:high]  # a global token inside the window counts once
        seen = torch.cat([near, real[:, None, index].expand(-1, stop - start, -1)], dim=2)
        bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))
        yield Tile(start, stop, low, high, bias[:, None])


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], index: Tensor) -> Tensor:
    """Attend from every tile to its window and the global tokens; arguments and result as `window_attention`."""
    return _Tiles.apply(query, key, value, tiles, index)


def tiled_attention_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], index: Tensor, dropout: float
) -> Tensor:
    """Attend as `tiled_attention` does, on any device, after a share of the attention weights is dropped.

    The fused kernels know no dropout, so a tile's weights are held, of one tile at a time without gradients.
    """
    extra = _rows(key, index), _rows(value, index)
    parts = []
    for tile in tiles:
        keys, values = (_beside(x, tile, more) for x, more in zip((key, value), extra, strict=True))
        scores = query[:, :, tile.start : tile.stop] @ keys.mT / query.shape[-1] ** 0.5 + tile.bias.to(query.dtype)
        hidden = tile.bias == float("-inf")
        # A token with nothing to attend to has no weights, and finite gradients.
        weights = scores.masked_fill(hidden.all(-1, keepdim=True), 0).softmax(-1).masked_fill(hidden, 0)
        parts.append(F.dropout(weights.to(values.dtype), dropout) @ values)
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


class _Tiles(torch.autograd.Function):
    """The tiles through the fused kernel, forward and backward.

    Written by hand because autograd would fill a gradient as long as the sequence for every tile's slice of it.
    """

    @staticmethod
    def forward(ctx, query, key, value, tiles, index):
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = []
        extra = _rows(key, index), _rows(value, index)
        for tile in tiles:
            keys, values = (_beside(x, tile, more) for x, more in zip((key, value), extra, strict=True))
            part, log_sum = _forward(
                query[:, :, tile.start : tile.stop], keys, values, 0.0, False, attn_mask=tile.bias.to(query.dtype)
            )
            out[:, :, tile.start : tile.stop] = part
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.tiles, ctx.index = tiles, index
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, out, *sums = ctx.saved_tensors
        index = ctx.index
        extra = _rows(key, index), _rows(value, index)
        grad_query, *grads = (
            torch.zeros(x.transpose(1, 2).shape, dtype=x.dtype).transpose(1, 2) for x in (query, key, value)
        )
        for tile, log_sum in zip(ctx.tiles, sums, strict=True):
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
        return grad_query, *grads, None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of the global tokens of x (B, heads, T, d) as (B, G, heads, d)."""
    return x.transpose(1, 2)[:, index]


def _beside(x: Tensor, tile: Tile, extra: Tensor) -> Tensor:
    """Return a tile's window of x followed by the rows of the global tokens, (B, heads, keys, d)."""
    return torch.cat([x[:, :, tile.low : tile.high].transpose(1, 2), extra], dim=1).transpose(1, 2)
