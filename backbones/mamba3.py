"""Bidirectional Mamba-3 (2026), with query attention: a trapezoidal step, a rotating state, and no convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import WAYS, channels_in_heads, log_rates, log_uniform_steps
from backbones.encoder import ListLayout
from backbones.ops._chunks import CHUNK, both_ways
from backbones.ops.ssd import ssd_chunked
from backbones.registry import register


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (..., N) by angles (..., N / 2)."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([one * cos - other * sin, one * sin + other * cos], dim=-1).flatten(-2)


def trapezoidal_scan(
    x: Tensor, delta: Tensor, rate: Tensor, share: Tensor, angle: Tensor, B: Tensor, C: Tensor, real: Tensor
) -> Tensor:
    """Scan from the first token to the last.

        S_t = a_t S_{t-1} + (1 - s_t) delta_t a_t x_{t-1} B_{t-1}^T + s_t delta_t x_t B_t^T        y_t = S_t C_t

    with a = exp(rate delta), and B and C rotated by the sum of pi tanh(angle) delta so far. A token enters the state
    with its own step and with that of the next one, so it is a recurrence of Mamba-2 less what is too much at t itself.

    Args:
        x: (N, T, heads, P).
        delta: (N, T, heads), not negative.
        rate: (N, T, heads), negative.
        share: (N, T, heads), s, in [0, 1].
        angle: (N, T, heads, S / 2).
        B: (N, T, heads, S).
        C: (N, T, heads, S).
        real: (N, T) bool; other tokens are taken out.

    Returns:
        (N, T, heads, P).
    """
    delta = delta * real[..., None]
    turn = (math.pi * angle.tanh() * delta[..., None]).cumsum(1)
    B, C = rotated(B, turn), rotated(C, turn)
    # The next real token of each, the last place of all where there is none, whose step counts as 0.
    tokens = x.shape[1]
    places = torch.arange(tokens, device=x.device).where(real, tokens)
    following = F.pad(places.flip(1).cummin(1).values.flip(1)[:, 1:], (0, 1), value=tokens)
    behind = F.pad((1 - share) * delta, (0, 0, 0, 1)).gather(1, following[..., None].expand(-1, -1, x.shape[2]))
    behind = behind * real[..., None]
    entering = ((share * delta + behind)[..., None]) * x
    too_much = behind[..., None] * (B * C).sum(-1, keepdim=True) * x
    return ssd_chunked(entering, rate * delta, B, C, CHUNK) - too_much


class BidirectionalMamba3(nn.Module):
    """One residual layer: shared projections, and decays, steps and a skip of its own in each direction.

    The mean of both directions is gated, normalised and projected.

    Args:
        width: D.
        expansion: channels over D.
        state: N, values that a channel keeps; even.
        heads: whose channels share a decay.
    """

    def __init__(self, width: int, expansion: float, state: int, heads: int):
        super().__init__()
        channels = channels_in_heads("mamba3", width, expansion, heads)
        if state % 2:
            raise ValueError(f"mamba3.state {state} must be even: pairs of it rotate.")
        self.heads, self.sizes = heads, (channels, channels, state, state, state // 2, heads, heads)
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.B_norm, self.C_norm = nn.RMSNorm(state, eps=1e-5), nn.RMSNorm(state, eps=1e-5)
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(heads, state)) for _ in range(2))
        self.A_log = nn.Parameter(log_rates(WAYS, heads))
        self.step_bias = nn.Parameter(log_uniform_steps(WAYS, heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.gated_norm = nn.RMSNorm(channels, eps=1e-5)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        projected = self.in_proj(self.norm(tokens if mask is None else zero_masked(tokens, mask)))
        gate, *inner = projected.split(self.sizes, dim=-1)
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        with torch.autocast(tokens.device.type, enabled=False):
            mixed = self._scanned(full_precision(*inner), real)
        return tokens + self.out_proj(self.gated_norm(mixed.to(gate.dtype) * F.silu(gate)))

    def _scanned(self, inner: list[Tensor], real: Tensor) -> Tensor:
        """Scan in both directions: the mean (B, T', channels)."""
        x, B, C, angle, step, share = inner
        kind = x.dtype
        B, C = (
            F.rms_norm(each, each.shape[-1:], norm.weight.to(kind), 1e-5)[..., None, :] + bias.to(kind)
            for each, norm, bias in ((B, self.B_norm, self.B_bias), (C, self.C_norm, self.C_bias))
        )
        delta = F.softplus(step + self.step_bias.to(kind)[:, None, None])
        rate = -self.A_log.to(kind).exp()[:, None, None].expand_as(delta)
        values = rearrange(x, "b t (h p) -> b t h p", h=self.heads)
        angle = angle[..., None, :].expand(*B.shape[:-1], -1)
        both = (t.expand(WAYS, *t.shape) for t in (share.sigmoid(), angle, B, C, real))
        scanned = both_ways(trapezoidal_scan, values.expand(WAYS, *values.shape), delta, rate, *both)
        return (scanned / WAYS + self.D.to(kind)[:, None] * values).flatten(2)


@register(
    "mamba3",
    mini={"width": 192, "depth": 4, "heads": 6, "mixer_expansion": 1, "state": 32},
    tiny={"width": 384, "depth": 6, "heads": 6, "mixer_heads": 12},
    small={"width": 512, "depth": 11, "heads": 8, "mixer_heads": 16},
    base={"width": 768, "depth": 9, "heads": 12, "mixer_heads": 24},
)
class Mamba3(InterleavedEncoder):
    """Bidirectional Mamba-3 with query attention.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        state: N, values that a channel keeps, even.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        mixer_expansion: Mamba channels over D.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        state: int = 64,
        mixer_heads: int | None = None,
        mixer_expansion: float = 2,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: BidirectionalMamba3(width, mixer_expansion, state, mixer_heads),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = int(width * mixer_expansion) * state
