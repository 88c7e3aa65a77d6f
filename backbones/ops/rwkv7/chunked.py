"""RWKV-7's recurrence in chunks: one triangular solve says what the tokens of a chunk take out of the state."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.ops._chunks import in_chunks, joined


def rwkv7_chunked(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, size: int) -> Tensor:
    """Scan in one direction.

    Args:
        r: (N, T, heads, K).
        log_w: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        kappa: (N, T, heads, K).
        a: (N, T, heads, K).
        size: tokens of a chunk.

    Returns:
        (N, T, heads, V).
    """
    tokens, size = k.shape[1], min(size, k.shape[1])
    r, log_w, k, v, kappa, a = (in_chunks(x, size) for x in (r, log_w, k, v, kappa, a))
    total = log_w.cumsum(-2)
    end = total[..., -1:, :]
    # Decays between tokens are products of one factor from the start of the chunk and one back to it.
    asking, reading, back = total.exp() * r, (total - log_w).exp() * kappa, (-total).exp()
    keys, erased = back * k, back * (a * kappa)
    held_keys, held_erased = (reading @ keys.mT).tril(-1), (reading @ erased.mT).tril(-1)
    right = torch.cat([held_keys @ v, reading], dim=-1)
    solved = torch.linalg.solve_triangular(held_erased, right, upper=False, unitriangular=True)
    of_values, of_state = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    seen_keys, seen_erased = (asking @ keys.mT).tril(), (asking @ erased.mT).tril()
    kept, adding, erasing = end.exp().mT, end.exp() * keys, end.exp() * erased
    inside = seen_keys @ v
    state, outputs = k.new_zeros(len(k), k.shape[2], k.shape[-1], v.shape[-1]), []
    parts = (x.unbind(1) for x in (of_values, of_state, asking, inside, seen_erased, kept, adding, erasing, v))
    for new, old, asked, within, taken, left, key, erase, value in zip(*parts, strict=True):
        held = new + old @ state
        outputs.append(asked @ state + within - taken @ held)
        state = left * state + key.mT @ value - erase.mT @ held
    return joined(torch.stack(outputs, dim=1), tokens)
