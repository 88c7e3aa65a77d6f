"""Bidirectional Mamba-2 (Dao and Gu 2024), with query attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import WAYS, ConvBothWays, channels_in_heads, log_rates, log_uniform_steps
from backbones.encoder import ListLayout
from backbones.ops.ssd import ssd
from backbones.registry import register


class BidirectionalMamba2(nn.Module):
    """One residual layer: shared projections, a convolution, decays and a skip of its own in each direction.

    The mean of both directions is gated, normalised and projected.

    Args:
        width: D.
        expansion: channels over D.
        state: N, values that a channel keeps.
        heads: whose channels share a decay.
        kernel: taps of the convolution.
    """

    def __init__(self, width: int, expansion: float, state: int, heads: int, kernel: int):
        super().__init__()
        channels = channels_in_heads("mamba2", width, expansion, heads)
        self.channels, self.state, self.heads = channels, state, heads
        mixed = channels + 2 * state
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, channels + mixed + heads, bias=False)
        self.conv = ConvBothWays(mixed, kernel)
        self.A_log = nn.Parameter(log_rates(WAYS, heads))
        self.step_bias = nn.Parameter(log_uniform_steps(WAYS, heads))
        self.D = nn.Parameter(torch.ones(WAYS, heads))
        self.gated_norm = nn.RMSNorm(channels, eps=1e-5)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        projected = self.in_proj(self.norm(tokens if mask is None else zero_masked(tokens, mask)))
        gate, inner, step = projected.split([self.channels, self.channels + 2 * self.state, self.heads], dim=-1)
        inner = inner if mask is None else zero_masked(inner, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            inner, step = full_precision(inner, step)
            mixed = self._scanned(inner, step, mask)
        gated = self.gated_norm(mixed.to(gate.dtype) * F.silu(gate))
        return tokens + self.out_proj(gated)

    def _scanned(self, inner: Tensor, step: Tensor, mask: Tensor | None) -> Tensor:
        """Convolve and scan in both directions: the mean (B, T', channels)."""
        A_log, step_bias, D = (p.to(inner.dtype) for p in (self.A_log, self.step_bias, self.D))
        x, B, C = self.conv(inner).split([self.channels, self.state, self.state], dim=-1)
        x = rearrange(x, "way b t (h p) -> way b t h p", h=self.heads)
        delta = F.softplus(step + step_bias[:, None, None])
        if mask is not None:  # a masked token leaves the state as it was
            delta = delta * mask[:, :, None]
        scanned = ssd(delta[..., None] * x, -delta * A_log.exp()[:, None, None], B[..., None, :], C[..., None, :])
        both = scanned + (D[:, None, None, :, None] * x).sum(0)
        return rearrange(both, "b t h p -> b t (h p)") / WAYS


@register(
    "mamba2",
    mini={"width": 192, "depth": 4, "heads": 6, "mixer_expansion": 1, "state": 32},
    tiny={"width": 384, "depth": 6, "heads": 6, "mixer_heads": 12},
    small={"width": 512, "depth": 11, "heads": 8, "mixer_heads": 16},
    base={"width": 768, "depth": 9, "heads": 12, "mixer_heads": 24},
)
class Mamba2(InterleavedEncoder):
    """Bidirectional Mamba-2 with query attention.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        state: N, values that a channel keeps.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        kernel: taps of the convolution.
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
        kernel: int = 4,
        mixer_expansion: float = 2,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: BidirectionalMamba2(width, mixer_expansion, state, mixer_heads, kernel),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = int(width * mixer_expansion) * state
