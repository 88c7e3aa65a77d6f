"""The selective scan of Mamba (Gu and Dao 2023, Algorithm 2), in either direction, forward and backward.

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t          y_t = <C_t, h_t> + D x_t

`selective_scan_reference` is the definition in plain tensors. `selective_scan` runs a compiled kernel on the CPU and
the reference elsewhere. The kernel keeps one state every STRIDE tokens for the backward pass and recomputes those
between.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from backbones.ops.numerics import CHANNELS, array, compiled, exp, kernel

STRIDE = 32  # tokens between the states kept for the backward pass


def selective_scan(x, delta, A, B, C, D, reverse: bool = False):
    """Scan x over its second dimension.

    Args:
        x, delta: (batch, T, channels); delta > 0 is the step, and delta = 0 leaves the state as it was.
        A: (channels, N), negative. B, C: (batch, T, N). D: (channels,), the skip connection.
        reverse: from the last token to the first.

    Returns:
        (batch, T, channels).
    """
    if compiled(x, delta, A, B, C, D):
        return _scan(x, delta, A, B, C, D, reverse)[0]
    return selective_scan_reference(x, delta, A, B, C, D, reverse)


def selective_scan_reference(x, delta, A, B, C, D, reverse: bool = False):
    """The definition, token after token; arguments as `selective_scan`."""
    state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs: list[torch.Tensor] = []
    tokens = range(x.shape[1])
    for t in reversed(tokens) if reverse else tokens:
        state = torch.exp(delta[:, t, :, None] * A) * state + (delta * x)[:, t, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])
    return torch.stack(outputs[::-1] if reverse else outputs, dim=1)


@torch.library.custom_op("locore::selective_scan", mutates_args=())
def _scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, tokens, channels = x.shape
    y = torch.empty(batch, tokens, channels, dtype=x.dtype)
    states = torch.empty(batch, -(-tokens // STRIDE), A.shape[1], channels, dtype=x.dtype)
    _forward(*map(array, (x, delta, A.t(), B, C, D)), reverse, y.numpy(), states.numpy())
    return y, states


@_scan.register_fake
def _(x, delta, A, B, C, D, reverse):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], -(-x.shape[1] // STRIDE), A.shape[1], x.shape[2])


@torch.library.custom_op("locore::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    states: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, tokens, channels = x.shape
    groups = -(-channels // CHANNELS)
    grad_x, grad_delta = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    grad_A = torch.zeros(batch, A.shape[1], channels, dtype=x.dtype)
    grad_B = torch.empty(groups, batch, tokens, A.shape[1], dtype=x.dtype)
    grad_C = torch.empty_like(grad_B)
    _backward(
        *map(array, (grad, x, delta, A.t(), B, C, D, states)),
        reverse,
        *(g.numpy() for g in (grad_x, grad_delta, grad_A, grad_B, grad_C)),
    )
    grad_D = (grad * x).sum((0, 1))
    return grad_x, grad_delta, grad_A.sum(0).t().contiguous(), grad_B.sum(0), grad_C.sum(0), grad_D


@_scan_backward.register_fake
def _(grad, x, delta, A, B, C, D, states, reverse):
    return tuple(t.new_empty(t.shape) for t in (x, delta, A, B, C, D))


def _save(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, output[1])


def _gradient(ctx, grad, _):
    return (*_scan_backward(grad.contiguous(), *ctx.saved_tensors, ctx.reverse), None)


_scan.register_autograd(_gradient, setup_context=_save)


@kernel
def _forward(x, delta, A, B, C, D, reverse, y, states):
    batch, tokens, channels = x.shape
    N = A.shape[0]
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        decay = np.zeros((N, CHANNELS), x.dtype)
        decay[:, :width] = A[:, start : start + width]
        state = np.zeros((N, CHANNELS), x.dtype)
        step, drive, out = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        for i in range(tokens):
            t = tokens - 1 - i if reverse else i
            if i % STRIDE == 0:
                states[b, i // STRIDE, :, start : start + width] = state[:, :width]
            for c in range(width):
                step[c] = delta[b, t, start + c]
                drive[c] = step[c] * x[b, t, start + c]
                out[c] = D[start + c] * x[b, t, start + c]
            for n in range(N):
                gain, read = B[b, t, n], C[b, t, n]
                for c in range(CHANNELS):
                    h = exp(step[c] * decay[n, c]) * state[n, c] + drive[c] * gain
                    state[n, c] = h
                    out[c] += h * read
            for c in range(width):
                y[b, t, start + c] = out[c]


@kernel
def _backward(grad, x, delta, A, B, C, D, states, reverse, grad_x, grad_delta, grad_A, grad_B, grad_C):
    batch, tokens, channels = x.shape
    N = A.shape[0]
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, group = item // groups, item % groups
        start = group * CHANNELS
        width = min(CHANNELS, channels - start)
        decay = np.zeros((N, CHANNELS), x.dtype)
        decay[:, :width] = A[:, start : start + width]
        carried = np.zeros((N, CHANNELS), x.dtype)  # gradient of the state, times the decay, from the token behind
        sum_A = np.zeros((N, CHANNELS), x.dtype)
        before = np.zeros((STRIDE + 1, N, CHANNELS), x.dtype)  # the state before each token of the chunk
        decays = np.zeros((STRIDE, N, CHANNELS), x.dtype)
        step, value, out = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        to_drive, to_step = np.zeros(CHANNELS, x.dtype), np.zeros(CHANNELS, x.dtype)
        for chunk in range((tokens - 1) // STRIDE, -1, -1):
            first = chunk * STRIDE
            length = min(STRIDE, tokens - first)
            before[0, :, :width] = states[b, chunk, :, start : start + width]
            for i in range(length):
                t = tokens - 1 - first - i if reverse else first + i
                for c in range(width):
                    step[c] = delta[b, t, start + c]
                    value[c] = step[c] * x[b, t, start + c]
                for n in range(N):
                    gain = B[b, t, n]
                    for c in range(CHANNELS):
                        a = exp(step[c] * decay[n, c])
                        decays[i, n, c] = a
                        before[i + 1, n, c] = a * before[i, n, c] + value[c] * gain
            for i in range(length - 1, -1, -1):
                t = tokens - 1 - first - i if reverse else first + i
                for c in range(width):
                    step[c] = delta[b, t, start + c]
                    value[c] = x[b, t, start + c]
                    out[c] = grad[b, t, start + c]
                to_drive[:] = 0
                to_step[:] = 0
                for n in range(N):
                    gain, read = B[b, t, n], C[b, t, n]
                    sum_B = x.dtype.type(0)
                    sum_C = x.dtype.type(0)
                    for c in range(CHANNELS):
                        g = carried[n, c] + read * out[c]
                        sum_C += out[c] * before[i + 1, n, c]
                        sum_B += g * step[c] * value[c]
                        to_drive[c] += g * gain
                        through = g * decays[i, n, c]
                        carried[n, c] = through
                        to_decay = through * before[i, n, c]
                        to_step[c] += to_decay * decay[n, c]
                        sum_A[n, c] += to_decay * step[c]
                    grad_B[group, b, t, n] = sum_B
                    grad_C[group, b, t, n] = sum_C
                for c in range(width):
                    grad_delta[b, t, start + c] = to_step[c] + to_drive[c] * value[c]
                    grad_x[b, t, start + c] = to_drive[c] * step[c] + D[start + c] * out[c]
        grad_A[b, :, start : start + width] = sum_A[:, :width]
