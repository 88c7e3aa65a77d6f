"""The scan compiled for the CPU, forward and backward, as an operator of PyTorch.

One state every STRIDE tokens is kept for the backward pass, and those between are recomputed.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from backbones.ops._numerics import CHANNELS, LOG2_E, array, exp, exp2, kernel, softplus

STRIDE = 32  # tokens between the states kept for the backward pass


@torch.library.custom_op("locore::selective_scan", mutates_args=())
def scan(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Scan by the compiled kernel: the result of `selective_scan`, and the states kept for the backward pass."""
    directions, batch, tokens, channels = x.shape
    y = torch.empty(batch, tokens, channels, dtype=x.dtype)
    states = torch.empty(directions, batch, -(-tokens // STRIDE), A.shape[2], channels, dtype=x.dtype)
    _forward(*map(array, (x, step, A.transpose(1, 2), B, C, D)), y.numpy(), states.numpy())
    return y, states


@scan.register_fake
def _(x, step, A, B, C, D):
    directions, batch, tokens, channels = x.shape
    states = x.new_empty(directions, batch, -(-tokens // STRIDE), A.shape[2], channels)
    return x.new_empty(batch, tokens, channels), states


@torch.library.custom_op("locore::selective_scan_backward", mutates_args=())
def scan_backward(
    grad: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, step, A, B, C and D."""
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


@scan_backward.register_fake
def _(grad, x, step, A, B, C, D, states):
    return tuple(t.new_empty(t.shape) for t in (x, step, A, B, C, D))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _gradient(ctx, grad, _):
    return scan_backward(grad.contiguous(), *ctx.saved_tensors)


scan.register_autograd(_gradient, setup_context=_save)


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
            for n in range(N):
                for c in range(width):
                    decay[n, c] = A[d, n, start + c] * x.dtype.type(LOG2_E)  # powers of 2 are cheaper
                for c in range(CHANNELS):
                    state[n, c] = 0
            for i in range(tokens):
                t = tokens - 1 - i if d else i
                if i % STRIDE == 0:
                    for n in range(N):
                        for c in range(width):
                            states[d, b, i // STRIDE, n, start + c] = state[n, c]
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
            for n in range(N):
                for c in range(width):
                    decay[n, c] = A[d, n, start + c] * x.dtype.type(LOG2_E)  # powers of 2 are cheaper
                for c in range(CHANNELS):
                    carried[n, c], sum_A[n, c] = 0, 0
            for chunk in range((tokens - 1) // STRIDE, -1, -1):
                first = chunk * STRIDE
                length = min(STRIDE, tokens - first)
                for n in range(N):
                    for c in range(width):
                        before[0, n, c] = states[d, b, chunk, n, start + c]
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
                    for c in range(CHANNELS):
                        to_drive[c], to_delta[c] = 0, 0
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
            for n in range(N):
                for c in range(width):
                    grad_A[b, d, n, start + c] = sum_A[n, c]
