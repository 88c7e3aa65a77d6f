"""The definition of the WKV average as a double sum."""

from __future__ import annotations

import torch


def wkv_reference(w, u, k, v, causal: bool = False):
    """Average by the double sum, with memory quadratic in T; arguments and result as `wkv`."""
    position = torch.arange(k.shape[1], device=k.device)
    distance = position[:, None] - position[None, :]
    exponent = k[:, None] - (distance.abs() - 1)[None, :, :, None] * w
    exponent = torch.where((distance == 0)[None, :, :, None], k[:, None] + u, exponent)
    if causal:
        exponent = exponent.masked_fill((distance < 0)[None, :, :, None], float("-inf"))
    return torch.einsum("btsc,bsc->btc", exponent.softmax(dim=2), v)
