"""The convolution compiled for the CPU, forward and backward, as an operator of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from numba.extending import register_jitable
from torch import Tensor

from backbones.ops._numerics import array, exp, kernel

CHUNK = 64  # tokens a work item


@torch.library.custom_op("locore::causal_conv", mutates_args=())
def causal_conv_compiled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by the compiled kernel; arguments and result as `causal_conv`."""
    y = torch.empty(len(weight), *x.shape, dtype=x.dtype)
    _forward(array(x), *_taps(weight, bias), y.numpy())
    return y


@causal_conv_compiled.register_fake
def _(x, weight, bias):
    return x.new_empty(len(weight), *x.shape)


@torch.library.custom_op("locore::causal_conv_backward", mutates_args=())
def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    directions, channels, taps = weight.shape
    chunks = -(-x.shape[1] // CHUNK)
    grad_x, inner = torch.empty(x.shape, dtype=x.dtype), torch.empty(grad.shape, dtype=x.dtype)
    sums = torch.zeros(len(x) * chunks, directions, taps + 1, channels, dtype=x.dtype)
    columns = _taps(weight, bias)
    _backward_inner(array(grad), array(x), *columns, inner.numpy(), sums.numpy())
    _backward_x(inner.numpy(), columns[0], grad_x.numpy())
    total = sums.sum(0)
    return grad_x, total[:, :taps].flip(1).transpose(1, 2).contiguous(), total[:, taps].contiguous()


@_conv_backward.register_fake
def _(grad, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad):
    return _conv_backward(grad.contiguous(), *ctx.saved_tensors)


causal_conv_compiled.register_autograd(_gradient, setup_context=_save)


def _taps(weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (directions, distance, channels) by distance from the token, and the bias."""
    return array(weight.flip(-1).transpose(1, 2)), array(bias)


@register_jitable
def _mix(x, weight, bias, b, d, t, inner):
    """Compute the input of the SiLU at token t."""
    _, tokens, channels = x.shape
    for c in range(channels):
        inner[c] = bias[d, c]
    for j in range(weight.shape[1]):
        source = t + j if d else t - j
        if 0 <= source < tokens:
            for c in range(channels):
                inner[c] += weight[d, j, c] * x[b, source, c]


@kernel
def _forward(x, weight, bias, y):
    batch, tokens, channels = x.shape
    directions = len(weight)
    chunks = (tokens + CHUNK - 1) // CHUNK
    for item in prange(batch * chunks):
        b, first = item // chunks, item % chunks * CHUNK
        inner = np.empty(channels, x.dtype)
        for d in range(directions):
            for t in range(first, min(first + CHUNK, tokens)):
                _mix(x, weight, bias, b, d, t, inner)
                for c in range(channels):
                    y[d, b, t, c] = inner[c] / (1 + exp(-inner[c]))


@kernel
def _backward_inner(grad, x, weight, bias, inner_grad, sums):
    # The gradient of what goes into the SiLU, and the sums over the chunk for the weights (the last row: the bias).
    batch, tokens, channels = x.shape
    directions, taps, _ = weight.shape
    chunks = (tokens + CHUNK - 1) // CHUNK
    for item in prange(batch * chunks):
        b, first = item // chunks, item % chunks * CHUNK
        inner = np.empty(channels, x.dtype)
        for d in range(directions):
            for t in range(first, min(first + CHUNK, tokens)):
                _mix(x, weight, bias, b, d, t, inner)
                for c in range(channels):
                    gate = 1 / (1 + exp(-inner[c]))
                    g = grad[d, b, t, c] * gate * (1 + inner[c] * (1 - gate))
                    inner[c] = g
                    inner_grad[d, b, t, c] = g
                    sums[item, d, taps, c] += g
                for j in range(taps):
                    source = t + j if d else t - j
                    if 0 <= source < tokens:
                        for c in range(channels):
                            sums[item, d, j, c] += inner[c] * x[b, source, c]


@kernel
def _backward_x(inner_grad, weight, grad_x):
    directions, batch, tokens, channels = inner_grad.shape
    taps = weight.shape[1]
    chunks = (tokens + CHUNK - 1) // CHUNK
    for item in prange(batch * chunks):
        b, first = item // chunks, item % chunks * CHUNK
        total = np.empty(channels, grad_x.dtype)
        for t in range(first, min(first + CHUNK, tokens)):
            for c in range(channels):
                total[c] = 0
            for d in range(directions):
                for j in range(taps):
                    reader = t - j if d else t + j
                    if 0 <= reader < tokens:
                        for c in range(channels):
                            total[c] += weight[d, j, c] * inner_grad[d, b, reader, c]
            for c in range(channels):
                grad_x[b, t, c] = total[c]
