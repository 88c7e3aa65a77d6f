"""The definition of mLSTM's recurrence, token after token, with the largest gate so far taken out of the state."""

from __future__ import annotations

import torch
from torch import Tensor


def mlstm_reference(q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor) -> Tensor:
    """Scan in one direction.

    Args:
        q: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        log_i: (N, T, heads).
        log_f: (N, T, heads).

    Returns:
        (N, T, heads, V).
    """
    cell = k.new_zeros(len(k), *k.shape[2:], v.shape[-1])
    norm, largest = torch.zeros_like(k[:, 0]), torch.zeros_like(log_f[:, 0])
    outputs = []
    for t in range(k.shape[1]):
        now = torch.maximum(log_f[:, t] + largest, log_i[:, t])
        kept, added = (log_f[:, t] + largest - now).exp(), (log_i[:, t] - now).exp()
        cell = kept[..., None, None] * cell + added[..., None, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
        norm, largest = kept[..., None] * norm + added[..., None] * k[:, t], now
        total = (norm * q[:, t]).sum(-1).abs()
        read = (cell * q[:, t, :, :, None]).sum(-2)
        outputs.append(read / torch.maximum(total, (-largest).exp())[..., None])
    return torch.stack(outputs, dim=1)
