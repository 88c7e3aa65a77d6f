"""The gated delta rule (Yang et al. 2025), in one or both directions.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        o_t = S_t^T q_t

A key first takes out what the state holds for it, then writes its value. `gated_delta_rule_reference` is the
definition. `gated_delta_rule` computes it in chunks, by matrix products and a triangular solve (their section 3.3).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from backbones.ops._chunks import CHUNK, both_ways
from backbones.ops.gated_delta_rule.chunked import gated_delta_rule_chunked
from backbones.ops.gated_delta_rule.reference import gated_delta_rule_reference

__all__ = ["gated_delta_rule", "gated_delta_rule_chunked", "gated_delta_rule_reference"]


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scan from the first token to the last and, in the second direction, from the last to the first.

    A token with beta = 0 and g = 0 leaves the state as it was.

    Args:
        q: (directions, batch, T, heads, K).
        k: (directions, batch, T, heads, K), of length 1.
        v: (directions, batch, T, heads, V).
        g: (directions, batch, T, heads), the logarithm of the decay, at most 0.
        beta: (directions, batch, T, heads), in [0, 1].
        chunk: tokens of a chunk.

    Returns:
        (batch, T, heads, V), the sum over the directions.
    """
    return both_ways(partial(gated_delta_rule_chunked, size=chunk), q, k, v, g, beta)
