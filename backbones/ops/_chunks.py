"""Linear recurrences with a decay in chunks of tokens: matrix products within a chunk, a state from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32  # tokens: fewer make more steps from chunk to chunk, more make larger products within one


def both_ways(recurrence: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run a recurrence from the first token to the last and, in the second direction, from the last to the first.

    Args:
        recurrence: of tensors (N, T, ...).
        inputs: (directions, batch, T, ...) each.

    Returns:
        (batch, T, ...), the sum over the directions.
    """
    ways = len(inputs[0])
    turned = [torch.stack([x[0], *(y.flip(1) for y in x[1:])]).flatten(0, 1) for x in inputs]
    found = recurrence(*turned).unflatten(0, (ways, -1))
    return found[0] if ways == 1 else found[0] + found[1].flip(1)


def in_chunks(x: Tensor, size: int) -> Tensor:
    """Cut (N, T, heads, ...) into chunks (N, chunks, heads, size, ...), zeros behind the last token."""
    missing = -x.shape[1] % size
    padded = F.pad(x, (*[0] * (2 * (x.ndim - 2)), 0, missing))
    return rearrange(padded, "n (m c) h ... -> n m h c ...", c=size)


def joined(x: Tensor, tokens: int) -> Tensor:
    """Join chunks (N, chunks, heads, size, D) to (N, T, heads, D)."""
    return rearrange(x, "n m h c d -> n (m c) h d")[:, :tokens]


def log_decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the decay between the tokens of a chunk, and of that from its start.

    Args:
        log_decay: (..., size) of each token, at most 0.

    Returns:
        (..., size, size), from token j to token i, without j's own decay, -inf for j > i; and (..., size), from the
        start to token i, with i's own.
    """
    total = log_decay.cumsum(-1)
    size = log_decay.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    # Masked before any exponential: of what overflows, the gradient would not be a number.
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")), total
