"""Parts that several encoders share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of x to a context.

    Query and key projections start equal, with weights of variance 1/width: then a token attends to its like from the
    first step. Started apart, training from random weights stays at the base rate for thousands of lists.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"Width {width} is not a multiple of {heads} heads.")
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        nn.init.uniform_(self.query.weight, -((3 / width) ** 0.5), (3 / width) ** 0.5)
        self.key.load_state_dict(self.query.state_dict())

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, M, D), context (B, N, D), mask broadcastable to (B, heads, M, N), True = seen, or None -> (B, M, D)."""
        query, key, value = (
            project(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, t in ((self.query, x), (self.key, context), (self.value, context))
        )
        return self.output(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, width: int, inner: int):
        super().__init__(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


def key_mask(mask: Tensor) -> Tensor | None:
    """(B, N) real tokens as an attention mask (B, 1, 1, N); None where all are real, which keeps the fastest kernel."""
    return None if bool(mask.all()) else mask[:, None, None, :]


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, T, D) with the masked tokens' content replaced by zero (also where it is not finite)."""
    return torch.where(mask[:, :, None], x, x.new_zeros(()))


def full_precision(*tensors: Tensor) -> Any:
    """The tensors as float32 (float64 stays): a recurrence over thousands of tokens loses too much in bfloat16."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]
