"""State space duality in chunks: the chunk form of Dao and Gu (2024), section 6."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.ops._chunks import in_chunks, joined, log_decays


def ssd_chunked(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, size: int) -> Tensor:
    """Scan in one direction.

    Args:
        x: (N, T, heads, P).
        log_decay: (N, T, heads).
        B: (N, T, heads or 1, S).
        C: (N, T, heads or 1, S).
        size: tokens of a chunk.

    Returns:
        (N, T, heads, P).
    """
    tokens, size = x.shape[1], min(size, x.shape[1])
    x, log_decay, B, C = (in_chunks(each, size) for each in (x, log_decay, B, C))
    between, total = log_decays(log_decay)
    between, end = between.exp(), total[..., -1:]
    # What a chunk adds to the state, then the state that comes into each.
    added = B.mT @ ((end - total).exp()[..., None] * x)
    state, before = torch.zeros_like(added[:, 0]), []
    for kept, more in zip(end.exp()[..., None].unbind(1), added.unbind(1), strict=True):
        before.append(state)
        state = kept * state + more
    inside = (C @ B.mT * between) @ x
    outside = total.exp()[..., None] * (C @ torch.stack(before, dim=1))
    return joined(inside + outside, tokens)
