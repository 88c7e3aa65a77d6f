"""The WKV average compiled for the CPU, forward and backward, as an operator of PyTorch.

One state walks forward, one backward, each a pair of sums with the running maximum of its exponents taken out, so that
no exponent overflows whatever the sign of w.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from numba.extending import register_jitable

from backbones.ops._numerics import CHANNELS, array, exp, kernel, log

LOWEST = -1e30  # exponent of an empty sum, and of a masked token's key


@torch.library.custom_op("locore::wkv", mutates_args=())
def wkv_operator(
    w: torch.Tensor, u: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average by the compiled kernel: the result of `wkv`, and the logarithm of its denominator."""
    y, log_sum = torch.empty_like(k, memory_format=torch.contiguous_format), torch.empty(k.shape, dtype=k.dtype)
    _forward(*map(array, (w, u, k, v)), causal, y.numpy(), log_sum.numpy())
    return y, log_sum


@wkv_operator.register_fake
def _(w, u, k, v, causal):
    return k.new_empty(k.shape), k.new_empty(k.shape)


@torch.library.custom_op("locore::wkv_backward", mutates_args=())
def wkv_backward(
    grad: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    y: torch.Tensor,
    log_sum: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of w, u, k and v."""
    grad_w = torch.empty(k.shape[0], k.shape[2], dtype=k.dtype)
    grad_u = torch.empty_like(grad_w)
    grad_k, grad_v = torch.empty(k.shape, dtype=k.dtype), torch.empty(k.shape, dtype=k.dtype)
    _backward(
        *map(array, (grad, w, u, k, v, y, log_sum)),
        causal,
        *(g.numpy() for g in (grad_w, grad_u, grad_k, grad_v)),
    )
    return grad_w.sum(0), grad_u.sum(0), grad_k, grad_v


@wkv_backward.register_fake
def _(grad, w, u, k, v, y, log_sum, causal):
    return w.new_empty(w.shape), u.new_empty(u.shape), k.new_empty(k.shape), k.new_empty(k.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx, grad, _):
    return (*wkv_backward(grad.contiguous(), *ctx.saved_tensors, ctx.causal), None)


wkv_operator.register_autograd(_gradient, setup_context=_save)


@register_jitable
def _pass(state, decay, key, value):
    """Move on by one token: both sums decay and add the token, their largest exponent taken out."""
    for c in range(CHANNELS):
        kept = state[2, c] - decay[c]
        most = max(kept, key[c])
        old, add = exp(kept - most), exp(key[c] - most)
        state[0, c] = old * state[0, c] + add * value[c]
        state[1, c] = old * state[1, c] + add
        state[2, c] = most


@register_jitable
def _empty(state):
    """Set both sums to those of no token."""
    for c in range(CHANNELS):
        state[0, c], state[1, c], state[2, c] = 0, 0, LOWEST


@kernel
def _forward(w, u, k, v, causal, y, log_sum):
    batch, tokens, channels = k.shape
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        decay, bonus = np.zeros(CHANNELS, k.dtype), np.zeros(CHANNELS, k.dtype)
        for c in range(width):
            decay[c], bonus[c] = w[start + c], u[start + c]
        # One direction's state: numerator and denominator, both times e^{-top}; a row of `state` each.
        state, key, value = np.zeros((3, CHANNELS), k.dtype), np.zeros(CHANNELS, k.dtype), np.zeros(CHANNELS, k.dtype)
        ahead = np.empty((tokens, 3, CHANNELS), k.dtype)  # the state of what follows token t, walked first and kept
        _empty(state)
        for t in range(tokens - 1, -1, -1):
            for row in range(3):
                for c in range(CHANNELS):
                    ahead[t, row, c] = state[row, c]
            if not causal:
                for c in range(width):
                    key[c], value[c] = k[b, t, start + c], v[b, t, start + c]
                _pass(state, decay, key, value)
        _empty(state)
        mean, total = np.zeros(CHANNELS, k.dtype), np.zeros(CHANNELS, k.dtype)
        for t in range(tokens):
            for c in range(width):
                key[c], value[c] = k[b, t, start + c], v[b, t, start + c]
            for c in range(CHANNELS):
                own = bonus[c] + key[c]
                most = max(max(state[2, c], ahead[t, 2, c]), own)
                past, future, itself = exp(state[2, c] - most), exp(ahead[t, 2, c] - most), exp(own - most)
                below = past * state[1, c] + future * ahead[t, 1, c] + itself
                mean[c] = (past * state[0, c] + future * ahead[t, 0, c] + itself * value[c]) / below
                total[c] = most + log(below)
            _pass(state, decay, key, value)
            for c in range(width):
                y[b, t, start + c], log_sum[b, t, start + c] = mean[c], total[c]


@kernel
def _backward(grad, w, u, k, v, y, log_sum, causal, grad_w, grad_u, grad_k, grad_v):
    # dL/dv_i = sum_t p_ti g_t and dL/dk_i = sum_t p_ti g_t (v_i - y_t), p_ti = e^{exponent_ti - log_sum_t}: two sums
    # over the tokens t that see i, so walked in the opposite direction of the forward pass, with exponents -log_sum_t.
    # dL/dw needs sum_i (|t-i|-1) p_ti (v_i - y_t): the last two rows of `state` are the sums with that factor.
    batch, tokens, channels = k.shape
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        decay, bonus = np.zeros(CHANNELS, k.dtype), np.zeros(CHANNELS, k.dtype)
        for c in range(width):
            decay[c], bonus[c] = w[start + c], u[start + c]
        top, state = np.zeros(CHANNELS, k.dtype), np.zeros((4, CHANNELS), k.dtype)
        sums = np.zeros((2, CHANNELS), k.dtype)  # gradients of w and u
        read = np.zeros((5, CHANNELS), k.dtype)  # key, value, gradient, y and log_sum of a token
        made = np.zeros((2, CHANNELS), k.dtype)  # gradients of its key and value
        for direction in range(1 if causal else 2):
            for c in range(CHANNELS):
                top[c] = LOWEST
                for row in range(4):
                    state[row, c] = 0
            for i in range(tokens):
                t = tokens - 1 - i if direction == 0 else i
                for c in range(width):
                    read[0, c], read[1, c] = k[b, t, start + c], v[b, t, start + c]
                    read[2, c], read[3, c] = grad[b, t, start + c], y[b, t, start + c]
                    read[4, c] = log_sum[b, t, start + c]
                for c in range(CHANNELS):
                    scale = exp(read[0, c] + top[c])
                    made[0, c] = scale * (read[1, c] * state[0, c] - state[1, c])
                    made[1, c] = scale * state[0, c]
                    sums[0, c] -= scale * (read[1, c] * state[2, c] - state[3, c])
                if direction == 0:
                    for c in range(CHANNELS):
                        own = exp(bonus[c] + read[0, c] - read[4, c]) * read[2, c]
                        to_bonus = own * (read[1, c] - read[3, c])
                        made[0, c] += to_bonus
                        made[1, c] += own
                        sums[1, c] += to_bonus
                    for c in range(width):
                        grad_k[b, t, start + c], grad_v[b, t, start + c] = made[0, c], made[1, c]
                else:
                    for c in range(width):
                        grad_k[b, t, start + c] += made[0, c]
                        grad_v[b, t, start + c] += made[1, c]
                for c in range(CHANNELS):
                    kept = top[c] - decay[c]
                    most = max(kept, -read[4, c])
                    old, add = exp(kept - most), exp(-read[4, c] - most) * read[2, c]
                    state[2, c] = old * (state[2, c] + state[0, c])
                    state[3, c] = old * (state[3, c] + state[1, c])
                    state[0, c] = old * state[0, c] + add
                    state[1, c] = old * state[1, c] + add * read[3, c]
                    top[c] = most
        for c in range(width):
            grad_w[b, start + c], grad_u[b, start + c] = sums[0, c], sums[1, c]
