"""The definition of RWKV-7's recurrence, token after token."""

from __future__ import annotations

import torch
from torch import Tensor


def rwkv7_reference(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Scan in one direction.

    Args:
        r: (N, T, heads, K).
        log_w: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        kappa: (N, T, heads, K).
        a: (N, T, heads, K).

    Returns:
        The outputs (N, T, heads, V) and the last state (N, heads, K, V).
    """
    state = k.new_zeros(len(k), *k.shape[2:], v.shape[-1])
    outputs = []
    for t in range(k.shape[1]):
        held = (state * kappa[:, t, :, :, None]).sum(-2, keepdim=True)
        state = log_w[:, t, :, :, None].exp() * state - (a * kappa)[:, t, :, :, None] * held
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((state * r[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, dim=1), state
