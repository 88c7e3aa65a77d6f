"""The recurrence of mLSTM (Beck et al. 2024, section 2.3), in one or both directions.

    C_t = f_t C_{t-1} + i_t v_t k_t^T      n_t = f_t n_{t-1} + i_t k_t      h_t = C_t q_t / max(|<n_t, q_t>|, 1)

with an exponential gate i. `mlstm_reference` is the definition. `mlstm` computes it in chunks by matrix products.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from backbones.ops._chunks import CHUNK, both_ways
from backbones.ops.mlstm.chunked import mlstm_chunked
from backbones.ops.mlstm.reference import mlstm_reference

__all__ = ["SHUT", "mlstm", "mlstm_chunked", "mlstm_reference"]

SHUT = -1e30  # log_i of a token that is to write nothing


def mlstm(q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scan from the first token to the last and, in the second direction, from the last to the first.

    A token with log_i = `SHUT` and log_f = 0 leaves the state as it was.

    Args:
        q: (directions, batch, T, heads, K).
        k: (directions, batch, T, heads, K).
        v: (directions, batch, T, heads, V).
        log_i: (directions, batch, T, heads), any number.
        log_f: (directions, batch, T, heads), at most 0.
        chunk: tokens of a chunk.

    Returns:
        (batch, T, heads, V), the sum over the directions.
    """
    return both_ways(partial(mlstm_chunked, size=chunk), q, k, v, log_i, log_f)
