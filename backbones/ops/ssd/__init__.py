"""State space duality, the recurrence of Mamba-2 (Dao and Gu 2024), in one or both directions.

    S_t = exp(a_t) S_{t-1} + x_t B_t^T        y_t = S_t C_t

`ssd_reference` is the definition. `ssd` computes it in chunks by matrix products (their section 6).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from backbones.ops._chunks import CHUNK, both_ways
from backbones.ops.ssd.chunked import ssd_chunked
from backbones.ops.ssd.reference import ssd_reference

__all__ = ["ssd", "ssd_chunked", "ssd_reference"]


def ssd(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scan x over its tokens, from the first to the last and, in the second direction, from the last to the first.

    A token with x = 0 and log_decay = 0 leaves the state as it was.

    Args:
        x: (directions, batch, T, heads, P), times the step.
        log_decay: (directions, batch, T, heads), at most 0.
        B: (directions, batch, T, heads or 1, N).
        C: (directions, batch, T, heads or 1, N).
        chunk: tokens of a chunk.

    Returns:
        (batch, T, heads, P), the sum over the directions.
    """
    return both_ways(partial(ssd_chunked, size=chunk), x, log_decay, B, C)
