"""The recurrence of RWKV-7 (Peng et al. 2025, section 4), in one or both directions.

    S_t = diag(w_t) S_{t-1} - (a_t kappa_t) (kappa_t^T S_{t-1}) + k_t v_t^T        o_t = S_t^T r_t

`rwkv7_reference` is the definition. `rwkv7` computes it in chunks, by matrix products and a triangular solve.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from backbones.ops._chunks import CHUNK, both_ways
from backbones.ops.rwkv7.chunked import rwkv7_chunked
from backbones.ops.rwkv7.reference import rwkv7_reference

__all__ = ["rwkv7", "rwkv7_chunked", "rwkv7_reference"]


def rwkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scan from the first token to the last and, in the second direction, from the last to the first.

    A token with log_w = 0 and k, v, kappa and a of 0 leaves the state as it was.

    Args:
        r: (directions, batch, T, heads, K).
        log_w: (directions, batch, T, heads, K), from -0.607 (of their gate) to 0: a chunk's product has to be a number.
        k: (directions, batch, T, heads, K).
        v: (directions, batch, T, heads, V).
        kappa: (directions, batch, T, heads, K), of length 1.
        a: (directions, batch, T, heads, K), in [0, 1].
        chunk: tokens of a chunk.

    Returns:
        (batch, T, heads, V), the sum over the directions.
    """
    return both_ways(partial(rwkv7_chunked, size=chunk), r, log_w, k, v, kappa, a)
