"""The WKV average of RWKV-4, causal (Peng et al. 2023, eq. 19) and bidirectional (Duan et al. 2024, eq. 6).

    y_t = (sum_i e^{-(|t-i|-1) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

with i != t in the bidirectional form and i < t in the causal one. `wkv_reference` is the double sum in plain tensors.
`wkv` runs a compiled kernel on the CPU, linear in T: one state walks forward, one backward, each a pair of sums with
the running maximum of its exponents taken out, so that no exponent overflows whatever the sign of w.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from backbones.ops.numerics import CHANNELS, array, compiled, exp, kernel

LOWEST = -1e30  # exponent of an empty sum, and of a masked token's key


def wkv(w, u, k, v, causal: bool = False):
    """Weighted average of the values around each token.

    Args:
        w: (channels,) decay a token of distance. u: (channels,) bonus of the token itself.
        k, v: (batch, T, channels). A key of `LOWEST` leaves its token out of every other token's average.
        causal: only the tokens before.

    Returns:
        (batch, T, channels).
    """
    if compiled(w, u, k, v):
        return _wkv(w, u, k, v, causal)[0]
    return wkv_reference(w, u, k, v, causal)


def wkv_reference(w, u, k, v, causal: bool = False):
    """The definition as a double sum, with memory quadratic in T; arguments as `wkv`."""
    position = torch.arange(k.shape[1], device=k.device)
    distance = position[:, None] - position[None, :]
    exponent = k[:, None] - (distance.abs() - 1)[None, :, :, None] * w
    exponent = torch.where((distance == 0)[None, :, :, None], k[:, None] + u, exponent)
    if causal:
        exponent = exponent.masked_fill((distance < 0)[None, :, :, None], float("-inf"))
    return torch.einsum("btsc,bsc->btc", exponent.softmax(dim=2), v)


@torch.library.custom_op("locore::wkv", mutates_args=())
def _wkv(
    w: torch.Tensor, u: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    y, log_sum = torch.empty_like(k, memory_format=torch.contiguous_format), torch.empty(k.shape, dtype=k.dtype)
    _forward(*map(array, (w, u, k, v)), causal, y.numpy(), log_sum.numpy())
    return y, log_sum


@_wkv.register_fake
def _(w, u, k, v, causal):
    return k.new_empty(k.shape), k.new_empty(k.shape)


@torch.library.custom_op("locore::wkv_backward", mutates_args=())
def _wkv_backward(
    grad: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    y: torch.Tensor,
    log_sum: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_w = torch.empty(k.shape[0], k.shape[2], dtype=k.dtype)
    grad_u = torch.empty_like(grad_w)
    grad_k, grad_v = torch.empty(k.shape, dtype=k.dtype), torch.empty(k.shape, dtype=k.dtype)
    _backward(
        *map(array, (grad, w, u, k, v, y, log_sum)),
        causal,
        *(g.numpy() for g in (grad_w, grad_u, grad_k, grad_v)),
    )
    return grad_w.sum(0), grad_u.sum(0), grad_k, grad_v


@_wkv_backward.register_fake
def _(grad, w, u, k, v, y, log_sum, causal):
    return w.new_empty(w.shape), u.new_empty(u.shape), k.new_empty(k.shape), k.new_empty(k.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx, grad, _):
    return (*_wkv_backward(grad.contiguous(), *ctx.saved_tensors, ctx.causal), None)


_wkv.register_autograd(_gradient, setup_context=_save)


@kernel
def _forward(w, u, k, v, causal, y, log_sum):
    batch, tokens, channels = k.shape
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        # State of one direction: numerator and denominator, both times e^{-top}.
        top = np.full(width, LOWEST, k.dtype)
        numerator, denominator = np.zeros(width, k.dtype), np.zeros(width, k.dtype)
        ahead = np.empty((tokens, width), k.dtype)  # what follows token t, walked first and kept
        ahead_sum, ahead_top = np.zeros((tokens, width), k.dtype), np.full((tokens, width), LOWEST, k.dtype)
        if not causal:
            for t in range(tokens - 1, -1, -1):
                for c in range(width):
                    ahead[t, c], ahead_sum[t, c], ahead_top[t, c] = numerator[c], denominator[c], top[c]
                    kept = top[c] - w[start + c]
                    new = max(kept, k[b, t, start + c])
                    old, add = exp(kept - new), exp(k[b, t, start + c] - new)
                    numerator[c] = old * numerator[c] + add * v[b, t, start + c]
                    denominator[c] = old * denominator[c] + add
                    top[c] = new
            top[:] = LOWEST
            numerator[:] = 0
            denominator[:] = 0
        else:
            ahead[:] = 0
        for t in range(tokens):
            for c in range(width):
                key, value = k[b, t, start + c], v[b, t, start + c]
                own = u[start + c] + key
                most = max(max(top[c], ahead_top[t, c]), own)
                past, future, self = exp(top[c] - most), exp(ahead_top[t, c] - most), exp(own - most)
                above = past * numerator[c] + future * ahead[t, c] + self * value
                below = past * denominator[c] + future * ahead_sum[t, c] + self
                y[b, t, start + c] = above / below
                log_sum[b, t, start + c] = most + np.log(below)
                kept = top[c] - w[start + c]
                new = max(kept, key)
                old, add = exp(kept - new), exp(key - new)
                numerator[c] = old * numerator[c] + add * value
                denominator[c] = old * denominator[c] + add
                top[c] = new


@kernel
def _backward(grad, w, u, k, v, y, log_sum, causal, grad_w, grad_u, grad_k, grad_v):
    # dL/dv_i = sum_t p_ti g_t and dL/dk_i = sum_t p_ti g_t (v_i - y_t), p_ti = e^{exponent_ti - log_sum_t}: two sums
    # over the tokens t that see i, so walked in the opposite direction of the forward pass, with exponents -log_sum_t.
    # dL/dw needs sum_i (|t-i|-1) p_ti (v_i - y_t): `aged_*` are the sums with that factor.
    batch, tokens, channels = k.shape
    groups = (channels + CHANNELS - 1) // CHANNELS
    for item in prange(batch * groups):
        b, start = item // groups, item % groups * CHANNELS
        width = min(CHANNELS, channels - start)
        for c in range(start, start + width):
            grad_w[b, c] = 0
            grad_u[b, c] = 0
        top = np.empty(width, k.dtype)
        sum_g, sum_gy = np.empty(width, k.dtype), np.empty(width, k.dtype)
        aged_g, aged_gy = np.empty(width, k.dtype), np.empty(width, k.dtype)
        for direction in range(1 if causal else 2):
            top[:] = LOWEST
            sum_g[:] = 0
            sum_gy[:] = 0
            aged_g[:] = 0
            aged_gy[:] = 0
            for i in range(tokens):
                t = tokens - 1 - i if direction == 0 else i
                for c in range(width):
                    at = start + c
                    key, value, g, mean = k[b, t, at], v[b, t, at], grad[b, t, at], y[b, t, at]
                    scale = exp(key + top[c])
                    to_v = scale * sum_g[c]
                    to_k = scale * (value * sum_g[c] - sum_gy[c])
                    grad_w[b, at] -= scale * (value * aged_g[c] - aged_gy[c])
                    if direction == 0:
                        own = exp(u[at] + key - log_sum[b, t, at])
                        bonus = own * g * (value - mean)
                        grad_u[b, at] += bonus
                        grad_v[b, t, at] = to_v + own * g
                        grad_k[b, t, at] = to_k + bonus
                    else:
                        grad_v[b, t, at] += to_v
                        grad_k[b, t, at] += to_k
                    kept = top[c] - w[at]
                    new = max(kept, -log_sum[b, t, at])
                    old, add = exp(kept - new), exp(-log_sum[b, t, at] - new)
                    aged_g[c] = old * (aged_g[c] + sum_g[c])
                    aged_gy[c] = old * (aged_gy[c] + sum_gy[c])
                    sum_g[c] = old * sum_g[c] + add * g
                    sum_gy[c] = old * sum_gy[c] + add * g * mean
                    top[c] = new
