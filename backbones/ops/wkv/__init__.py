"""The WKV average of RWKV-4, causal (Peng et al. 2023, eq. 19) and bidirectional (Duan et al. 2024, eq. 6).

    y_t = (sum_i e^{-(|t-i|-1) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

with i != t in the bidirectional form and i < t in the causal one. `wkv_reference` is the double sum in plain tensors.
`wkv` runs a compiled kernel on the CPU and a Triton kernel on CUDA, both linear in T.
(flash-linear-attention and the `rwkv` package have the causal average only.)
"""

from __future__ import annotations

import backbones.ops.wkv.cuda  # noqa: F401 - registers the operator's GPU kernels
from backbones.ops._numerics import compiled, on_gpu
from backbones.ops.wkv.cpu import LOWEST, wkv_operator
from backbones.ops.wkv.reference import wkv_reference

__all__ = ["LOWEST", "wkv", "wkv_reference"]


def wkv(w, u, k, v, causal: bool = False):
    """Average the values around each token, weighted by keys and distance.

    Args:
        w: (channels,) decay a token of distance.
        u: (channels,) bonus of the token itself.
        k: (batch, T, channels) keys; a key of `LOWEST` leaves its token out of every other token's average.
        v: (batch, T, channels) values.
        causal: average over earlier tokens only.

    Returns:
        (batch, T, channels).
    """
    if compiled(w, u, k, v) or on_gpu(w, u, k, v):
        return wkv_operator(w, u, k, v, causal)[0]
    return wkv_reference(w, u, k, v, causal)
