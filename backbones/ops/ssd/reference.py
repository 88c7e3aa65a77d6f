"""The definition of state space duality, token after token."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Scan in one direction.

    Args:
        x: (N, T, heads, P).
        log_decay: (N, T, heads).
        B: (N, T, heads or 1, S).
        C: (N, T, heads or 1, S).

    Returns:
        The outputs (N, T, heads, P) and the last state (N, heads, P, S).
    """
    state = x.new_zeros(len(x), *x.shape[2:], B.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        state = log_decay[:, t, :, None, None].exp() * state + x[:, t, :, :, None] * B[:, t, :, None, :]
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state
