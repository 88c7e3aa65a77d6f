"""Parts that several encoders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

SLICE = 512  # tokens


class Attention(nn.Module):
    """Multi-head attention of tokens to a context.

    Query and key projections start equal, with weights of variance 1/width: a token then attends to similar tokens from
    the first step. With independent projections, training from random weights stays at the base rate for thousands of
    lists.

    Args:
        width: D.
        heads: attention heads; D must be a multiple of it.
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
        """Attend from x to the context.

        Args:
            x: (B, M, D).
            context: (B, N, D).
            mask: broadcastable to (B, heads, M, N), True = may be attended to; None = all.

        Returns:
            (B, M, D).
        """
        query, key, value = (
            rearrange(project(t), "b t (h d) -> b h t d", h=self.heads)
            for project, t in ((self.query, x), (self.key, context), (self.value, context))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        return self.output(rearrange(mixed, "b h t d -> b t (h d)"))


class FeedForward(nn.Module):
    """Layer norm, linear, GELU and linear, with a residual."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm, self.widen, self.narrow = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: (B, T, D) -> (B, T, D)."""
        return in_slices(lambda part: part + self.narrow(F.gelu(self.widen(self.norm(part)))), x)


def in_slices(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply a function that transforms each token by itself.

    Without gradients, a slice of tokens at a time: intermediate values stay in the processor's cache and are never held
    for the whole list. With gradients all of them have to be kept anyway.

    Args:
        function: of tensors (rows, ...), returns (rows, D).
        tensors: (B, T, ...) each.

    Returns:
        (B, T, D).
    """
    if torch.is_grad_enabled() or tensors[0].device.type != "cpu":
        return function(*tensors)
    rows = [x.flatten(0, 1).split(SLICE) for x in tensors]
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    for part, *inputs in zip(out.flatten(0, 1).split(SLICE), *rows, strict=True):
        part.copy_(function(*inputs))
    return out


def key_mask(mask: Tensor) -> Tensor | None:
    """Turn real tokens (B, N) into an attention mask (B, 1, 1, N); None if all are real, which keeps the fastest
    kernel.
    """
    return None if bool(mask.all()) else mask[:, None, None, :]


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """Replace the content of masked tokens in x (B, T, D) by zero, also where it is not finite."""
    return torch.where(mask[:, :, None], x, x.new_zeros(()))


def full_precision(*tensors: Tensor) -> Any:
    """Convert tensors to float32 (float64 stays): a recurrence over thousands of tokens loses too much in bfloat16."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]
