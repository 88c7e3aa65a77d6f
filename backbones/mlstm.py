"""Bidirectional mLSTM (Beck et al. 2024), with query attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import WAYS, ConvBothWays
from backbones.encoder import ListLayout
from backbones.ops.mlstm import SHUT, mlstm
from backbones.registry import register


class BidirectionalMLSTM(nn.Module):
    """One residual layer: shared projections, a convolution and gates of its own in each direction.

    The mean of both directions is normalised in each head, gated and projected.

    Args:
        width: D.
        heads: of the recurrence.
        head: width of a head's keys and of its values.
        kernel: taps of the convolution.
    """

    def __init__(self, width: int, heads: int, head: int, kernel: int):
        super().__init__()
        self.heads, channels = heads, 3 * heads * head
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, channels, bias=False)
        # The gates know nothing at first; states last from 20 to 400 tokens.
        self.gates = nn.Linear(width, 2 * heads, bias=False)
        nn.init.zeros_(self.gates.weight)
        self.input_bias = nn.Parameter(torch.zeros(WAYS, heads))
        self.forget_bias = nn.Parameter(torch.linspace(3, 6, heads).repeat(WAYS, 1))
        self.output_gate = nn.Linear(width, heads * head, bias=False)
        self.conv = ConvBothWays(channels, kernel)
        self.head_norm = nn.RMSNorm(head, eps=1e-5)
        self.out_proj = nn.Linear(heads * head, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        normed = self.norm(tokens if mask is None else zero_masked(tokens, mask))
        inner = self.in_proj(normed)
        inner = inner if mask is None else zero_masked(inner, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            inner, gates = full_precision(inner, self.gates(normed))
            mixed = self._scanned(inner, gates, mask)
        gated = self.head_norm(mixed.to(normed.dtype)).flatten(2) * self.output_gate(normed).sigmoid()
        return tokens + self.out_proj(gated)

    def _scanned(self, inner: Tensor, gates: Tensor, mask: Tensor | None) -> Tensor:
        """Convolve and scan in both directions: the mean (B, T', heads, V)."""
        input_bias, forget_bias = self.input_bias.to(inner.dtype), self.forget_bias.to(inner.dtype)
        seen = self.conv(inner).chunk(3, dim=-1)
        query, key, value = (rearrange(x, "way b t (h d) -> way b t h d", h=self.heads) for x in seen)
        write, forget = gates.chunk(2, dim=-1)
        log_i = write + input_bias[:, None, None]
        log_f = F.logsigmoid(forget + forget_bias[:, None, None])
        if mask is not None:  # a masked token leaves the state as it was
            masked = ~mask[:, :, None]
            log_i, log_f = log_i.masked_fill(masked, SHUT), log_f.masked_fill(masked, 0)
        return mlstm(query, key / key.shape[-1] ** 0.5, value, log_i, log_f) / WAYS


@register(
    "mlstm",
    mini={"width": 192, "depth": 4, "heads": 6, "head": 32, "expansion": 3.15},
    tiny={"width": 384, "depth": 6, "heads": 6},
    small={"width": 512, "depth": 11, "heads": 8},
    base={"width": 768, "depth": 9, "heads": 12},
)
class MLSTM(InterleavedEncoder):
    """Bidirectional mLSTM with query attention.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        head: width of a head's keys and of its values.
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
        head: int = 64,
        kernel: int = 4,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: BidirectionalMLSTM(width, mixer_heads, head, kernel),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = mixer_heads * head * (head + 1)  # keys times values, and the sum of the keys
