"""The definition of window attention, with its matrix of scores: memory quadratic in T."""

from __future__ import annotations

import torch
from torch import Tensor


def window_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor, is_global: Tensor, reach: int
) -> Tensor:
    """Attend by definition.

    Args:
        query: (B, heads, T, d).
        key: (B, heads, T, d).
        value: (B, heads, T, d).
        real: (B, T) bool, tokens that may be attended to.
        is_global: (T,) bool, tokens that everything attends to.
        reach: one-sided window in tokens.

    Returns:
        (B, heads, T, d).
    """
    position = torch.arange(query.shape[2], device=query.device)
    near = (position[:, None] - position).abs() <= reach
    seen = (near | is_global)[None] & real[:, None]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num(0)
    return weights @ value
