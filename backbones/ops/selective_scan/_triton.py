"""The selective scan on CUDA: one program a list, direction and block of channels, a chunk of tokens at a time.

A chunk's tokens are read at once, and each thread scans those of one channel and state in its registers. With
TRITON_INTERPRET=1 the same kernels run on a CPU, slowly, which is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STATES = 128  # of all channels, a program's: one a thread


def forward(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Scan on a GPU.

    Args:
        x: contiguous float32, as all tensors here; shapes as in `selective_scan`.
        step: as in `selective_scan`.
        A: as in `selective_scan`.
        B: as in `selective_scan`.
        C: as in `selective_scan`.
        D: as in `selective_scan`.
        stride: tokens between the states that are kept.

    Returns:
        The result of `selective_scan`, and the kept states (directions, batch, chunks, N, channels).
    """
    directions, batch, tokens, channels = x.shape
    y = torch.empty_like(x)
    states = x.new_empty(directions, batch, triton.cdiv(tokens, stride), A.shape[2], channels)
    grid, sizes = _plan(x, A)
    _forward[grid](x, step, A, B, C, D, y, states, *sizes, stride, num_warps=STATES // 32)
    return y.sum(0), states


def backward(
    grad: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, states: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, step, A, B, C and D; those of B and C sum in no fixed order, as in mamba-ssm."""
    batch = x.shape[1]
    grad_x, grad_step = torch.empty_like(x), torch.empty_like(x)
    grad_A, grad_D = x.new_empty(batch, *A.shape), x.new_empty(batch, *D.shape)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
    grid, sizes = _plan(x, A)
    made = grad_x, grad_step, grad_A, grad_B, grad_C, grad_D
    _backward[grid](grad, x, step, A, B, C, D, states, *made, *sizes, stride, num_warps=STATES // 32)
    return grad_x, grad_step, grad_A.sum(0), grad_B, grad_C, grad_D.sum(0)


def _plan(x: Tensor, A: Tensor) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return the grid; and tokens, channels, N, channels a program, and N as a power of two."""
    directions, batch, tokens, channels = x.shape
    padded = triton.next_power_of_2(A.shape[2])
    block = max(STATES // padded, 1)
    return (triton.cdiv(channels, block), batch, directions), (tokens, channels, A.shape[2], block, padded)


@triton.jit
def _softplus(x):
    u = tl.exp(-tl.abs(x))
    near = 1 + u  # log(1 + u) = u log(near) / (near - 1) keeps the digits of a small u (Kahan)
    log = tl.where(near == 1, u, tl.log(near) * (u / tl.where(near == 1, 1.0, near - 1)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _then(decay, state, next_decay, next_state):
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _forward(
    x, step, A, B, C, D, y, states, tokens, channels, N, BLOCK: tl.constexpr, PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
):  # fmt: skip
    d, b = tl.program_id(2), tl.program_id(1)
    list_ = (d * tl.num_programs(1) + b).to(tl.int64)
    row = tl.arange(0, STRIDE)
    c, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    some_c, some_n = c < channels, n < N
    square = some_c[:, None] & some_n[None, :]
    decay = tl.load(A + (d * channels + c[:, None]) * N + n[None, :], mask=square, other=0.0)
    skip = tl.load(D + d * channels + c, mask=some_c, other=0.0)
    state = tl.zeros([BLOCK, PADDED], tl.float32)
    chunks = tl.cdiv(tokens, STRIDE)
    for chunk in range(chunks):
        tl.store(states + ((list_ * chunks + chunk) * N + n[None, :]) * channels + c[:, None], state, mask=square)
        i = chunk * STRIDE + row
        at = list_ * tokens + tl.where(d == 0, i, tokens - 1 - i)
        wide, narrow = (i < tokens)[:, None] & some_c[None, :], (i < tokens)[:, None] & some_n[None, :]
        value = tl.load(x + at[:, None] * channels + c[None, :], mask=wide, other=0.0)
        delta = _softplus(tl.load(step + at[:, None] * channels + c[None, :], mask=wide, other=-1e30))
        gain = tl.load(B + at[:, None] * N + n[None, :], mask=narrow, other=0.0)
        read = tl.load(C + at[:, None] * N + n[None, :], mask=narrow, other=0.0)
        kept = tl.exp(delta[:, :, None] * decay[None, :, :])
        drive = (delta * value)[:, :, None] * gain[:, None, :]
        drive = tl.where((row == 0)[:, None, None], kept * state[None, :, :] + drive, drive)
        _, every = tl.associative_scan((kept, drive), 0, _then)
        out = tl.sum(every * read[:, None, :], axis=2) + skip[None, :] * value
        tl.store(y + at[:, None] * channels + c[None, :], out, mask=wide)
        state = tl.sum(tl.where((row == STRIDE - 1)[:, None, None], every, 0.0), axis=0)


@triton.jit
def _backward(
    grad, x, step, A, B, C, D, states, grad_x, grad_step, grad_A, grad_B, grad_C, grad_D, tokens, channels, N,
    BLOCK: tl.constexpr, PADDED: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    d, b = tl.program_id(2), tl.program_id(1)
    list_ = (d * tl.num_programs(1) + b).to(tl.int64)
    row = tl.arange(0, STRIDE)
    c, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    some_c, some_n = c < channels, n < N
    square = some_c[:, None] & some_n[None, :]
    decay = tl.load(A + (d * channels + c[:, None]) * N + n[None, :], mask=square, other=0.0)
    skip = tl.load(D + d * channels + c, mask=some_c, other=0.0)
    behind = tl.zeros([BLOCK, PADDED], tl.float32)  # gradient of the state behind the chunk's first token
    total_A, total_D = tl.zeros([BLOCK, PADDED], tl.float32), tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(tokens, STRIDE)
    for done in range(chunks):
        chunk = chunks - 1 - done
        before = ((list_ * chunks + chunk) * N + n[None, :]) * channels + c[:, None]
        state = tl.load(states + before, mask=square, other=0.0)
        i = chunk * STRIDE + row
        t = tl.where(d == 0, i, tokens - 1 - i)
        at = list_ * tokens + t
        later = at + tl.where(d == 0, 1, -1)
        wide, narrow = (i < tokens)[:, None] & some_c[None, :], (i < tokens)[:, None] & some_n[None, :]
        wide_later = (i + 1 < tokens)[:, None] & some_c[None, :]
        value = tl.load(x + at[:, None] * channels + c[None, :], mask=wide, other=0.0)
        raw = tl.load(step + at[:, None] * channels + c[None, :], mask=wide, other=-1e30)
        raw_later = tl.load(step + later[:, None] * channels + c[None, :], mask=wide_later, other=-1e30)
        out = tl.load(grad + (b * tokens + t).to(tl.int64)[:, None] * channels + c[None, :], mask=wide, other=0.0)
        gain = tl.load(B + at[:, None] * N + n[None, :], mask=narrow, other=0.0)
        read = tl.load(C + at[:, None] * N + n[None, :], mask=narrow, other=0.0)
        delta = _softplus(raw)
        drive = (delta * value)[:, :, None] * gain[:, None, :]
        kept = tl.exp(delta[:, :, None] * decay[None, :, :])
        begun = tl.where((row == 0)[:, None, None], kept * state[None, :, :] + drive, drive)
        _, every = tl.associative_scan((kept, begun), 0, _then)
        narrow_at = at[:, None] * N + n[None, :]
        tl.atomic_add(grad_C + narrow_at, tl.sum(every * out[:, :, None], axis=1), mask=narrow, sem="relaxed")
        # The gradient of a state: what its own output asks for, and what the next state passes down.
        kept = tl.exp(_softplus(raw_later)[:, :, None] * decay[None, :, :])
        asked = out[:, :, None] * read[:, None, :]
        asked = tl.where((row == STRIDE - 1)[:, None, None], kept * behind[None, :, :] + asked, asked)
        _, asked = tl.associative_scan((kept, asked), 0, _then, reverse=True)
        behind = tl.sum(tl.where((row == 0)[:, None, None], asked, 0.0), axis=0)
        tl.atomic_add(
            grad_B + narrow_at, tl.sum(asked * (delta * value)[:, :, None], axis=1), mask=narrow, sem="relaxed"
        )
        to_drive = tl.sum(asked * gain[:, None, :], axis=2)
        to_decay = asked * (every - drive)  # every - drive is what has been kept of the state before
        total_A += tl.sum(to_decay * delta[:, :, None], axis=0)
        total_D += tl.sum(out * value, axis=0)
        to_delta = tl.sum(to_decay * decay[None, :, :], axis=2) + to_drive * value
        wide_at = at[:, None] * channels + c[None, :]
        tl.store(grad_x + wide_at, to_drive * delta + skip[None, :] * out, mask=wide)
        tl.store(grad_step + wide_at, to_delta / (1 + tl.exp(-raw)), mask=wide)
    own = (b * tl.num_programs(2) + d).to(tl.int64) * channels + c
    tl.store(grad_A + own[:, None] * N + n[None, :], total_A, mask=square)
    tl.store(grad_D + own, total_D, mask=some_c)
