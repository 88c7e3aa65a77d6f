"""The selective scan of Mamba (Gu and Dao 2023, Algorithm 2) in one or both directions, forward and backward.

    delta_t = softplus(step_t)      h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t      y_t = <C_t, h_t> + D x_t

`selective_scan_reference` is the definition in plain tensors. `selective_scan` runs a compiled kernel on the CPU and a
Triton kernel on CUDA; both keep one state every STRIDE tokens for the backward pass and recompute those between.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from backbones.ops.numerics import CHANNELS, LOG2_E, array, compiled, exp, exp2, kernel, on_gpu, softplus

STRIDE = 32  # tokens between the states kept for the backward pass
SKIPPED = -1e30  # the step of a token that is to leave the state as it was


def selective_scan(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan x over its tokens, from the first to the last and, in the second direction, from the last to the first.

    Args:
        x, step: (directions, batch, T, channels); a step of `SKIPPED` leaves the state as it was.
        A: (directions, channels, N), negative. B, C: (directions, batch, T, N).
        D: (directions, channels), the skip connection.

    Returns:
        (batch, T, channels), the sum over the directions.
    """
    if compiled(x, step, A, B, C, D) or on_gpu(x, step, A, B, C, D):
        return _scan(x, step, A, B, C, D)[0]
    return selective_scan_reference(x, step, A, B, C, D)


def selective_scan_reference(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The definition, token after token; arguments as `selective_scan`."""
    delta, total = F.softplus(step), torch.zeros_like(x[0])
    driven = delta * x
    for direction in range(len(x)):
        state = x.new_zeros(*x.shape[1:2], x.shape[3], A.shape[2])
        outputs: list[Tensor] = []
        tokens = range(x.shape[2])
        for t in reversed(tokens) if direction else tokens:
            now, drive = delta[direction, :, t, :, None], driven[direction, :, t, :, None]
            state = torch.exp(now * A[direction]) * state + drive * B[direction, :, t, None, :]
            outputs.append((state * C[direction, :, t, None, :]).sum(-1) + D[direction] * x[direction, :, t])
        total = total + torch.stack(outputs[::-1] if direction else outputs, dim=1)
    return total


@torch.library.custom_op("locore::selective_scan", mutates_args=())
def _scan(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    directions, batch, tokens, channels = x.shape
    y = torch.empty(batch, tokens, channels, dtype=x.dtype)
    states = torch.empty(directions, batch, -(-tokens // STRIDE), A.shape[2], channels, dtype=x.dtype)
    _forward(*map(array, (x, step, A.transpose(1, 2), B, C, D)), y.numpy(), states.numpy())
    return y, states


@_scan.register_fake
def _(x, step, A, B, C, D):
    directions, batch, tokens, channels = x.shape
    states = x.new_empty(directions, batch, -(-tokens // STRIDE), A.shape[2], channels)
    return x.new_empty(batch, tokens, channels), states


@torch.library.custom_op("locore::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    directions, batch, _, channels = x.shape
    groups = -(-channels // CHANNELS)
    grad_x, grad_step = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    grad_A = torch.zeros(batch, directions, A.shape[2], channels, dtype=x.dtype)
    grad_B = torch.empty(groups, *B.shape, dtype=x.dtype)
    grad_C = torch.empty_like(grad_B)
    grad_D = torch.zeros(batch, directions, channels, dtype=x.dtype)
    _backward(
        *map(array, (grad, x, step, A.transpose(1, 2), B, C, D, states)),
        *(g.numpy() for g in (grad_x, grad_step, grad_A, grad_B, grad_C, grad_D)),
    )
    return grad_x, grad_step, grad_A.sum(0).transpose(1, 2).contiguous(), grad_B.sum(0), grad_C.sum(0), grad_D.sum(0)


@_scan_backward.register_fake
def _(grad, x, step, A, B, C, D, states):
    return tuple(t.new_empty(t.shape) for t in (x, step, A, B, C, D))


@_scan.register_kernel("cuda")
def _(x, step, A, B, C, D):
    from backbones.ops import selective_scan_triton

    return selective_scan_triton.forward(*(t.contiguous() for t in (x, step, A, B, C, D)), STRIDE)


@_scan_backward.register_kernel("cuda")
def _(grad, x, step, A, B, C, D, states):
    from backbones.ops import selective_scan_triton

    return selective_scan_triton.backward(*(t.contiguous() for t in (grad, x, step, A, B, C, D, states)), STRIDE)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _gradient(ctx, grad, _):
    return _scan_backward(grad.contiguous(), *ctx.saved_tensors)


_scan.register_autograd(_gradient, setup_context=_save)


@kernel
def _forward(x, step, A, B, C, D, y, states):
    directions, batch, tokens, channels = x.shape
    N = A.shape[1]
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        decay = np.zeros((N, CHANNELS), x.dtype)
        state = np.zeros((N, CHANNELS), x.dtype)
        delta, drive, out = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        for d in range(directions):
            decay[:, :width] = A[d, :, start : start + width] * x.dtype.type(LOG2_E)  # powers of 2 are cheaper
            state[:] = 0
            for i in range(tokens):
                t = tokens - 1 - i if d else i
                if i % STRIDE == 0:
                    states[d, b, i // STRIDE, :, start : start + width] = state[:, :width]
                for c in range(width):
                    now = softplus(step[d, b, t, start + c])
                    delta[c] = now
                    drive[c] = now * x[d, b, t, start + c]
                    out[c] = D[d, start + c] * x[d, b, t, start + c]
                for n in range(N):
                    gain, read = B[d, b, t, n], C[d, b, t, n]
                    for c in range(CHANNELS):
                        h = exp2(delta[c] * decay[n, c]) * state[n, c] + drive[c] * gain
                        state[n, c] = h
                        out[c] += h * read
                if d:
                    for c in range(width):
                        y[b, t, start + c] += out[c]
                else:
                    for c in range(width):
                        y[b, t, start + c] = out[c]


@kernel
def _backward(grad, x, step, A, B, C, D, states, grad_x, grad_step, grad_A, grad_B, grad_C, grad_D):
    directions, batch, tokens, channels = x.shape
    N = A.shape[1]
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, group = item // groups, item % groups
        start = group * CHANNELS
        width = min(CHANNELS, channels - start)
        decay = np.zeros((N, CHANNELS), x.dtype)
        carried = np.zeros((N, CHANNELS), x.dtype)  # gradient of the state, times the decay, from the token behind
        sum_A = np.zeros((N, CHANNELS), x.dtype)
        before = np.zeros((STRIDE + 1, N, CHANNELS), x.dtype)  # the state before each token of the chunk
        decays = np.zeros((STRIDE, N, CHANNELS), x.dtype)
        deltas = np.zeros((STRIDE, CHANNELS), x.dtype)
        drive, value, out = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        to_drive, to_delta = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        for d in range(directions):
            decay[:, :width] = A[d, :, start : start + width] * x.dtype.type(LOG2_E)  # powers of 2 are cheaper
            carried[:] = 0
            sum_A[:] = 0
            for chunk in range((tokens - 1) // STRIDE, -1, -1):
                first = chunk * STRIDE
                length = min(STRIDE, tokens - first)
                before[0, :, :width] = states[d, b, chunk, :, start : start + width]
                for i in range(length):
                    t = tokens - 1 - first - i if d else first + i
                    for c in range(width):
                        now = softplus(step[d, b, t, start + c])
                        deltas[i, c] = now
                        drive[c] = now * x[d, b, t, start + c]
                    for n in range(N):
                        gain = B[d, b, t, n]
                        for c in range(CHANNELS):
                            a = exp2(deltas[i, c] * decay[n, c])
                            decays[i, n, c] = a
                            before[i + 1, n, c] = a * before[i, n, c] + drive[c] * gain
                for i in range(length - 1, -1, -1):
                    t = tokens - 1 - first - i if d else first + i
                    for c in range(width):
                        value[c] = x[d, b, t, start + c]
                        drive[c] = deltas[i, c] * value[c]
                        out[c] = grad[b, t, start + c]
                    to_drive[:] = 0
                    to_delta[:] = 0
                    for n in range(N):
                        gain, read = B[d, b, t, n], C[d, b, t, n]
                        sum_B = x.dtype.type(0)
                        sum_C = x.dtype.type(0)
                        for c in range(CHANNELS):
                            g = carried[n, c] + read * out[c]
                            sum_C += out[c] * before[i + 1, n, c]
                            sum_B += g * drive[c]
                            to_drive[c] += g * gain
                            through = g * decays[i, n, c]
                            carried[n, c] = through
                            to_decay = through * before[i, n, c]
                            to_delta[c] += to_decay * decay[n, c]
                            sum_A[n, c] += to_decay * deltas[i, c]
                        grad_B[group, d, b, t, n] = sum_B
                        grad_C[group, d, b, t, n] = sum_C
                    for c in range(width):
                        slope = 1 / (1 + exp(-step[d, b, t, start + c]))
                        grad_step[d, b, t, start + c] = (
                            to_delta[c] / x.dtype.type(LOG2_E) + to_drive[c] * value[c]
                        ) * slope
                        grad_x[d, b, t, start + c] = to_drive[c] * deltas[i, c] + D[d, start + c] * out[c]
                        grad_D[b, d, start + c] += out[c] * value[c]
            grad_A[b, d, :, start : start + width] = sum_A[:, :width]
