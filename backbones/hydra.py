"""Hydra (Hwang et al. 2024): Mamba-2 in both directions with one diagonal, with query attention."""

from __future__ import annotations

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


def quasi_separable(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Mix every token with those before it and those after it, but not with itself.

    Args:
        x: (directions, batch, T, heads, P), times the step.
        log_decay: (directions, batch, T, heads).
        B: (directions, batch, T, 1, N).
        C: (directions, batch, T, 1, N).

    Returns:
        (batch, T, heads, P), the sum of both directions, each one step late.
    """

    def late(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return F.pad(ssd_chunked(x, log_decay, B, C, CHUNK)[:, :-1], (0, 0, 0, 0, 1, 0))

    return both_ways(late, x, log_decay, B, C)


def centred_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve each channel of x (B, T, channels) with its taps (channels, kernel), the middle one the token itself.

    A sum of shifted products: PyTorch's depthwise convolution takes ten times as long on a CPU.
    """
    kernel = weight.shape[1]
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    out = bias
    for tap in range(kernel):
        out = torch.addcmul(out, padded[:, tap : tap + x.shape[1]], weight[:, tap])
    return out


class QuasiSeparable(nn.Module):
    """One residual layer: both directions share projections and a convolution, and have a B and C of their own.

    What a token gives itself follows from the token. The sum is gated, normalised and projected.

    Args:
        width: D.
        expansion: channels over D.
        state: N, values that a channel keeps in each direction.
        heads: whose channels share a decay.
        kernel: taps of the convolution, which looks to both sides; odd.
    """

    def __init__(self, width: int, expansion: float, state: int, heads: int, kernel: int):
        super().__init__()
        channels = channels_in_heads("hydra", width, expansion, heads)
        if kernel % 2 == 0:
            raise ValueError(f"hydra.kernel {kernel} must be odd: the convolution looks as far back as ahead.")
        self.channels, self.state, self.heads = channels, state, heads
        mixed, bound = channels + 2 * WAYS * state, kernel**-0.5
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, channels + mixed + WAYS * heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(mixed, kernel).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(mixed).uniform_(-bound, bound))
        self.A_log = nn.Parameter(log_rates(heads))
        self.step_bias = nn.Parameter(log_uniform_steps(heads))
        self.diagonal = nn.Linear(channels, heads)
        nn.init.ones_(self.diagonal.bias)
        self.gated_norm = nn.RMSNorm(channels, eps=1e-5)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        projected = self.in_proj(self.norm(tokens if mask is None else zero_masked(tokens, mask)))
        sizes = [self.channels, self.channels + 2 * WAYS * self.state, WAYS * self.heads]
        gate, inner, step = projected.split(sizes, dim=-1)
        inner = inner if mask is None else zero_masked(inner, mask)
        seen = F.silu(centred_conv(inner, self.conv_weight, self.conv_bias))
        x, of_directions = seen.split([self.channels, 2 * WAYS * self.state], dim=-1)
        own = rearrange(x, "b t (h p) -> b t h p", h=self.heads) * self.diagonal(x)[..., None]
        with torch.autocast(tokens.device.type, enabled=False):
            x, of_directions, step = full_precision(x, of_directions, step)
            others = self._scanned(x, of_directions, step, mask)
        mixed = (others.to(own.dtype) + own).flatten(2)
        return tokens + self.out_proj(self.gated_norm(mixed * F.silu(gate)))

    def _scanned(self, x: Tensor, of_directions: Tensor, step: Tensor, mask: Tensor | None) -> Tensor:
        """Scan in both directions: (B, T', heads, P)."""
        B, C = rearrange(of_directions, "b t (both way n) -> both way b t 1 n", both=2, way=WAYS)
        step = rearrange(step, "b t (way h) -> way b t h", way=WAYS)
        delta = F.softplus(step + self.step_bias.to(step.dtype))
        if mask is not None:  # a masked token leaves the state as it was
            delta = delta * mask[:, :, None]
        log_decay = -delta * self.A_log.to(step.dtype).exp()
        values = delta[..., None] * rearrange(x, "b t (h p) -> b t h p", h=self.heads)
        return quasi_separable(values, log_decay, B, C)


@register(
    "hydra",
    mini={"width": 192, "depth": 4, "heads": 6, "mixer_expansion": 1, "state": 32, "expansion": 3.82},
    tiny={"width": 384, "depth": 6, "heads": 6, "mixer_heads": 12},
    small={"width": 512, "depth": 11, "heads": 8, "mixer_heads": 16},
    base={"width": 768, "depth": 9, "heads": 12, "mixer_heads": 24},
)
class Hydra(InterleavedEncoder):
    """Hydra with query attention.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        state: N, values that a channel keeps in each direction.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        kernel: taps of the convolution, odd.
        mixer_expansion: channels over D.
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
        kernel: int = 7,
        mixer_expansion: float = 2,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: QuasiSeparable(width, mixer_expansion, state, mixer_heads, kernel),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = int(width * mixer_expansion) * state
