"""Bidirectional gated DeltaNet (Yang et al. 2025), with query attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import WAYS, ConvBothWays, log_rates, log_uniform_steps
from backbones.encoder import ListLayout
from backbones.ops.gated_delta_rule import gated_delta_rule
from backbones.registry import register


class BidirectionalDeltaNet(nn.Module):
    """One residual layer: shared projections, a convolution and decays of its own in each direction.

    The mean of both directions is normalised in each head, gated and projected.

    Args:
        width: D.
        heads: of the recurrence.
        key: K, width of a head's keys.
        value: V, width of a head's values.
        kernel: taps of the convolution.
    """

    def __init__(self, width: int, heads: int, key: int, value: int, kernel: int):
        super().__init__()
        self.heads, self.widths = heads, (heads * key, heads * key, heads * value)
        channels = sum(self.widths)
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, channels, bias=False)
        self.rates = nn.Linear(width, 2 * heads, bias=False)  # of decay and of writing
        self.gate = nn.Linear(width, heads * value, bias=False)
        self.conv = ConvBothWays(channels, kernel)
        self.A_log = nn.Parameter(log_rates(WAYS, heads))
        self.step_bias = nn.Parameter(log_uniform_steps(WAYS, heads))
        self.head_norm = nn.RMSNorm(value, eps=1e-5)
        self.out_proj = nn.Linear(heads * value, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        normed = self.norm(tokens if mask is None else zero_masked(tokens, mask))
        inner = self.in_proj(normed)
        inner = inner if mask is None else zero_masked(inner, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            inner, rates = full_precision(inner, self.rates(normed))
            mixed = self._scanned(inner, rates, mask)
        gated = self.head_norm(mixed.to(normed.dtype)).flatten(2) * F.silu(self.gate(normed))
        return tokens + self.out_proj(gated)

    def _scanned(self, inner: Tensor, rates: Tensor, mask: Tensor | None) -> Tensor:
        """Convolve and scan in both directions: the mean (B, T', heads, V)."""
        A_log, step_bias = self.A_log.to(inner.dtype), self.step_bias.to(inner.dtype)
        seen = self.conv(inner).split(self.widths, dim=-1)
        query, key, value = (rearrange(x, "way b t (h d) -> way b t h d", h=self.heads) for x in seen)
        query, key = F.normalize(query, dim=-1) / query.shape[-1] ** 0.5, F.normalize(key, dim=-1)
        decay, write = rates.chunk(2, dim=-1)
        g = -A_log.exp()[:, None, None] * F.softplus(decay + step_bias[:, None, None])
        beta = write.sigmoid().expand_as(g)
        if mask is not None:  # a masked token leaves the state as it was
            g, beta = g * mask[:, :, None], beta * mask[:, :, None]
        return gated_delta_rule(query, key, value, g, beta) / WAYS


@register(
    "gated_deltanet",
    mini={"width": 192, "depth": 4, "heads": 6, "key": 32, "value": 32, "expansion": 3.15},
    tiny={"width": 384, "depth": 6, "heads": 6},
    small={"width": 512, "depth": 11, "heads": 8},
    base={"width": 768, "depth": 9, "heads": 12},
)
class GatedDeltaNet(InterleavedEncoder):
    """Bidirectional gated DeltaNet with query attention.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        key: K, width of a head's keys.
        value: V, width of a head's values.
        kernel: taps of the convolution.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        mixer_heads: int | None = None,
        key: int = 64,
        value: int = 64,
        kernel: int = 4,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: BidirectionalDeltaNet(width, mixer_heads, key, value, kernel),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = mixer_heads * key * value
