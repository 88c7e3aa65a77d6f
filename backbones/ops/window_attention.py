"""Attention within a window plus global tokens (Beltagy et al. 2020), without the quadratic matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def window_attention(query: Tensor, key: Tensor, value: Tensor, real: Tensor, global_: Tensor, reach: int) -> Tensor:
    """Each token attends to the real tokens at most `reach` away and to the real global tokens, each once.

    The sequence is cut into blocks of `reach` queries; a block's keys are its own, those of both neighbours, and the
    global tokens.

    Args:
        query, key, value: (B, heads, T, d).
        real: (B, T) bool, tokens that may be attended to.
        global_: (T,) bool, tokens that everything attends to.
        reach: one-sided window.

    Returns:
        (B, heads, T, d); zero for a token with nothing to attend to.
    """
    batch, _, tokens, _ = query.shape
    blocks = -(-tokens // reach)
    padding = blocks * reach - tokens

    def neighbourhoods(x: Tensor) -> Tensor:  # (..., T, d) -> (..., blocks, 3 reach, d)
        return F.pad(x, (0, 0, reach, reach + padding)).unfold(-2, 3 * reach, reach).transpose(-1, -2)

    index = global_.nonzero().flatten()
    keys, values = (
        torch.cat(
            [neighbourhoods(x), x[:, :, None, index].expand(-1, -1, blocks, -1, -1)],
            dim=3,
        )
        .transpose(1, 2)
        .flatten(0, 1)
        for x in (key, value)
    )
    offset = torch.arange(3 * reach, device=query.device) - reach - torch.arange(reach, device=query.device)[:, None]
    near = neighbourhoods((real & ~global_)[..., None].float())[..., 0].bool()  # (B, blocks, 3 reach)
    seen = torch.cat(
        [
            near[:, :, None] & (offset.abs() <= reach),
            real[:, None, None, index].expand(-1, blocks, reach, -1),
        ],
        dim=3,
    )
    queries = F.pad(query, (0, 0, 0, padding)).unflatten(2, (blocks, reach)).transpose(1, 2).flatten(0, 1)
    mixed = F.scaled_dot_product_attention(queries, keys, values, seen.flatten(0, 1)[:, None])
    return mixed.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]


def window_attention_reference(query, key, value, real, global_, reach):
    """The definition with its matrix of scores; arguments as `window_attention`."""
    position = torch.arange(query.shape[2], device=query.device)
    near = (position[:, None] - position).abs() <= reach
    seen = (near | global_)[None] & real[:, None]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num(0)
    return weights @ value
