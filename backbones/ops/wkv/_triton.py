"""The WKV average on CUDA: the sums of `backbones.ops.wkv.cpu`, one program for each list and block of channels.

With TRITON_INTERPRET=1 the same kernels run slowly on a CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32  # a program's
LOWEST = tl.constexpr(-1e30)  # exponent of an empty sum


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Average contiguous float32 tensors on a GPU; arguments as `wkv`. Returns its result and the log of its
    denominator.
    """
    batch, tokens, channels = k.shape
    y, log_sum = torch.empty_like(k), torch.empty_like(k)
    grid = batch, triton.cdiv(channels, CHANNELS)
    _forward[grid](w, u, k, v, y, log_sum, tokens, channels, causal, CHANNELS)
    return y, log_sum


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of w, u, k and v."""
    batch, tokens, channels = k.shape
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(k)
    grad_w = k.new_empty(batch, channels)
    grad_u = torch.empty_like(grad_w)
    grid = batch, triton.cdiv(channels, CHANNELS)
    made = grad_w, grad_u, grad_k, grad_v
    _backward[grid](grad, w, u, k, v, y, log_sum, *made, tokens, channels, causal, CHANNELS)
    return grad_w.sum(0), grad_u.sum(0), grad_k, grad_v


@triton.jit
def _forward(w, u, k, v, y, log_sum, tokens, channels, causal: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    base = tl.program_id(0).to(tl.int64) * tokens * channels + c
    decay, bonus = tl.load(w + c, mask=inside, other=0.0), tl.load(u + c, mask=inside, other=0.0)
    above, below = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], LOWEST, tl.float32)
    if not causal:
        # What follows each token, walked first and kept in the outputs as a mean and the logarithm of its weight.
        for i in range(tokens):
            at = base + (tokens - 1 - i) * channels
            some = below > 0
            tl.store(y + at, tl.where(some, above / tl.where(some, below, 1.0), 0.0), mask=inside)
            tl.store(log_sum + at, tl.where(some, top + tl.log(tl.where(some, below, 1.0)), LOWEST), mask=inside)
            key, value = tl.load(k + at, mask=inside, other=0.0), tl.load(v + at, mask=inside, other=0.0)
            most = tl.maximum(top - decay, key)
            old, add = tl.exp(top - decay - most), tl.exp(key - most)
            above, below, top = old * above + add * value, old * below + add, most
        tl.debug_barrier()
        above, below = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        top = tl.full([BLOCK], LOWEST, tl.float32)
    for t in range(tokens):
        at = base + t * channels
        key, value = tl.load(k + at, mask=inside, other=0.0), tl.load(v + at, mask=inside, other=0.0)
        own = bonus + key
        most = tl.maximum(top, own)
        if causal:
            past, itself = tl.exp(top - most), tl.exp(own - most)
            numerator, denominator = past * above + itself * value, past * below + itself
        else:
            mean, weight = tl.load(y + at, mask=inside, other=0.0), tl.load(log_sum + at, mask=inside, other=0.0)
            most = tl.maximum(most, weight)
            past, future, itself = tl.exp(top - most), tl.exp(weight - most), tl.exp(own - most)
            numerator = past * above + future * mean + itself * value
            denominator = past * below + future + itself
        tl.store(y + at, numerator / denominator, mask=inside)
        tl.store(log_sum + at, most + tl.log(denominator), mask=inside)
        most = tl.maximum(top - decay, key)
        old, add = tl.exp(top - decay - most), tl.exp(key - most)
        above, below, top = old * above + add * value, old * below + add, most


@triton.jit
def _backward(
    grad, w, u, k, v, y, log_sum, grad_w, grad_u, grad_k, grad_v, tokens, channels, causal: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # The sums of the compiled kernel in `backbones.ops.wkv.cpu`, explained there.
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    row = tl.program_id(0).to(tl.int64) * channels + c
    base = tl.program_id(0).to(tl.int64) * tokens * channels + c
    decay, bonus = tl.load(w + c, mask=inside, other=0.0), tl.load(u + c, mask=inside, other=0.0)
    total_w, total_u = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for direction in tl.static_range(1 if causal else 2):
        sum_g, sum_gy = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        aged_g, aged_gy = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        top = tl.full([BLOCK], LOWEST, tl.float32)
        for i in range(tokens):
            t = i if direction else tokens - 1 - i
            at = base + t * channels
            key, value = tl.load(k + at, mask=inside, other=0.0), tl.load(v + at, mask=inside, other=0.0)
            g, mean = tl.load(grad + at, mask=inside, other=0.0), tl.load(y + at, mask=inside, other=0.0)
            weight = tl.load(log_sum + at, mask=inside, other=0.0)
            scale = tl.exp(key + top)
            to_v, to_k = scale * sum_g, scale * (value * sum_g - sum_gy)
            total_w -= scale * (value * aged_g - aged_gy)
            if direction == 0:
                own = tl.exp(bonus + key - weight) * g
                total_u += own * (value - mean)
                to_k += own * (value - mean)
                to_v += own
            else:
                to_k += tl.load(grad_k + at, mask=inside, other=0.0)
                to_v += tl.load(grad_v + at, mask=inside, other=0.0)
            tl.store(grad_k + at, to_k, mask=inside)
            tl.store(grad_v + at, to_v, mask=inside)
            most = tl.maximum(top - decay, -weight)
            old, add = tl.exp(top - decay - most), tl.exp(-weight - most) * g
            aged_g, aged_gy = old * (aged_g + sum_g), old * (aged_gy + sum_gy)
            sum_g, sum_gy, top = old * sum_g + add, old * sum_gy + add * mean, most
        tl.debug_barrier()
    tl.store(grad_w + row, total_w, mask=inside)
    tl.store(grad_u + row, total_u, mask=inside)
