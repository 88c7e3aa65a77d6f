"""The selective scan of Mamba (Gu and Dao 2023, Algorithm 2) in one or both directions, forward and backward.

    delta_t = softplus(step_t)      h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t      y_t = <C_t, h_t> + D x_t

`selective_scan_reference` is the definition in plain tensors. `selective_scan` runs a compiled kernel on the CPU and a
Triton kernel on CUDA.
"""

from __future__ import annotations

from torch import Tensor

import backbones.ops.selective_scan.cuda  # noqa: F401 - registers the operator's GPU kernels
from backbones.ops._numerics import compiled, on_gpu
from backbones.ops.selective_scan.cpu import scan
from backbones.ops.selective_scan.reference import selective_scan_reference

__all__ = ["SKIPPED", "selective_scan", "selective_scan_reference"]

SKIPPED = -1e30  # the step of a token that is to leave the state as it was


def selective_scan(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan x over its tokens, from the first to the last and, in the second direction, from the last to the first.

    Args:
        x: (directions, batch, T, channels).
        step: (directions, batch, T, channels), before the softplus; `SKIPPED` leaves the state as it was.
        A: (directions, channels, N), negative.
        B: (directions, batch, T, N).
        C: (directions, batch, T, N).
        D: (directions, channels), the skip connection.

    Returns:
        (batch, T, channels), the sum over the directions.
    """
    if compiled(x, step, A, B, C, D) or on_gpu(x, step, A, B, C, D):
        return scan(x, step, A, B, C, D)[0]
    return selective_scan_reference(x, step, A, B, C, D)
