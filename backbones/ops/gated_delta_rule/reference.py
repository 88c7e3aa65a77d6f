"""The definition of the gated delta rule, token after token."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_delta_rule_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Scan in one direction.

    Args:
        q: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        g: (N, T, heads).
        beta: (N, T, heads).

    Returns:
        The outputs (N, T, heads, V) and the last state (N, heads, K, V).
    """
    state = k.new_zeros(len(k), *k.shape[2:], v.shape[-1])
    outputs = []
    for t in range(k.shape[1]):
        state = g[:, t, :, None, None].exp() * state
        held = (state * k[:, t, :, :, None]).sum(-2)
        written = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * written[:, :, None, :]
        outputs.append((state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, dim=1), state
