"""mLSTM's recurrence in chunks: sums of exponentials, from each of which its largest exponent is taken out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.ops._chunks import in_chunks, joined, log_decays


def mlstm_chunked(q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, size: int) -> Tensor:
    """Scan in one direction.

    Args:
        q: (N, T, heads, K).
        k: (N, T, heads, K).
        v: (N, T, heads, V).
        log_i: (N, T, heads).
        log_f: (N, T, heads).
        size: tokens of a chunk.

    Returns:
        (N, T, heads, V).
    """
    tokens, size = k.shape[1], min(size, k.shape[1])
    # With a one behind each value, the sum of weights is one more value.
    q, k, v, log_i, log_f = (in_chunks(x, size) for x in (q, k, F.pad(v, (0, 1), value=1.0), log_i, log_f))
    between, total = log_decays(log_f)
    inside = between + log_i[..., None, :]
    at_end = total[..., -1:] - total + log_i
    # The largest exponents only keep numbers small, so no gradient flows through them.
    largest, largest_at_end = inside.detach().amax(-1), at_end.detach().amax(-1)
    scores = q @ k.mT
    state = k.new_zeros(len(k), k.shape[2], k.shape[-1], v.shape[-1])
    taken_out, outputs = torch.zeros_like(largest_at_end[:, 0]), []
    parts = (x.unbind(1) for x in (q, k, v, total, inside, at_end, largest, largest_at_end, scores))
    for asked, key, value, so_far, weight, last, top, top_at_end, score in zip(*parts, strict=True):
        of_state = so_far + taken_out[..., None]
        now = torch.maximum(top, of_state.detach())
        found = (score * (weight - now[..., None]).exp()) @ value
        found = found + (of_state - now).exp()[..., None] * (asked @ state)
        read, sums = found[..., :-1], found[..., -1:]
        outputs.append(read / torch.maximum(sums.abs(), (-now).exp()[..., None]))
        kept = so_far[..., -1] + taken_out
        new = torch.maximum(kept.detach(), top_at_end)
        written = ((last - new[..., None]).exp()[..., None] * key).mT @ value
        state, taken_out = (kept - new).exp()[..., None, None] * state + written, new
    return joined(torch.stack(outputs, dim=1), tokens)
