"""The gated delta rule in chunks (Yang et al. 2025, section 3.3): one triangular solve says what a chunk writes."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.ops._chunks import in_chunks, joined, log_decays


def gated_delta_rule_chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, size: int) -> Tensor:
    """Scan in one direction.

    Args:
        q: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        g: (N, T, heads).
        beta: (N, T, heads).
        size: tokens of a chunk.

    Returns:
        (N, T, heads, V).
    """
    tokens, size = k.shape[1], min(size, k.shape[1])
    q, k, v, g, beta = (in_chunks(each, size) for each in (q, k, v, g, beta))
    between, total = log_decays(g)
    between, end = between.exp(), total[..., -1:]
    weighted = beta[..., None] * k
    # Row i: how much of what token j < i writes is held for key i, and so taken out by it.
    taken = (weighted @ k.mT * between).tril(-1)
    right = torch.cat([beta[..., None] * v, total.exp()[..., None] * weighted], dim=-1)
    solved = torch.linalg.solve_triangular(taken, right, upper=False, unitriangular=True)
    written, of_state = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    inside, asking = q @ k.mT * between, total.exp()[..., None] * q
    kept, adding = end.exp()[..., None], (end - total).exp()[..., None] * k
    state, outputs = k.new_zeros(len(k), k.shape[2], k.shape[-1], v.shape[-1]), []
    # Unbound at once: the gradient of each slice alone would be as long as the sequence.
    parts = (x.unbind(1) for x in (written, of_state, asking, inside, kept, adding))
    for new, old, asked, within, left, key in zip(*parts, strict=True):
        values = new - old @ state
        outputs.append(asked @ state + within @ values)
        state = left * state + key.mT @ values
    return joined(torch.stack(outputs, dim=1), tokens)
