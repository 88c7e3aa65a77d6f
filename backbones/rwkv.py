"""Bidirectional RWKV-4, as in Vision-RWKV (Duan et al. 2024), interleaved with query attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, in_slices, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones.encoder import ListLayout
from backbones.ops.wkv import LOWEST, wkv
from backbones.registry import register


def neighbours(x: Tensor) -> Tensor:
    """Shift (B, T, D) to each token's neighbours: half of the channels from the token before, half from the token
    after.
    """
    before, behind = x.chunk(2, dim=-1)
    return torch.cat([F.pad(before[:, :-1], (0, 0, 1, 0)), F.pad(behind[:, 1:], (0, 0, 0, 1))], dim=-1)


class TimeMix(nn.Module):
    """Token shift, then the gated WKV average."""

    def __init__(self, width: int):
        super().__init__()
        ramp = torch.arange(width) / max(width - 1, 1)
        self.mix_key, self.mix_value, self.mix_receptance = (nn.Parameter(ramp.clone()) for _ in range(3))
        # A decay over the whole sequence of e^w: from growing slowly with distance to forgetting within a few blocks.
        self.decay = nn.Parameter(-1 + 33 * ramp**2)
        self.bonus = nn.Parameter(torch.zeros(width))
        self.key, self.value, self.receptance, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        x = x if mask is None else zero_masked(x, mask)
        shifted = neighbours(x)
        key = self.key(torch.lerp(shifted, x, self.mix_key))
        value = self.value(torch.lerp(shifted, x, self.mix_value))
        gate = torch.sigmoid(self.receptance(torch.lerp(shifted, x, self.mix_receptance)))
        if mask is not None:
            key = key.masked_fill(~mask[:, :, None], LOWEST)
        with torch.autocast(x.device.type, enabled=False):
            mean = wkv(*full_precision(self.decay / layout.tokens, self.bonus, key, value))
        return self.output(gate * mean.to(gate.dtype))


class ChannelMix(nn.Module):
    """Token shift, then a gated feed-forward with a squared ReLU."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        ramp = torch.arange(width) / max(width - 1, 1)
        self.mix_key, self.mix_receptance = (nn.Parameter(ramp.clone()) for _ in range(2))
        self.key, self.value = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x if mask is None else zero_masked(x, mask)
        return in_slices(self._mixed, x, neighbours(x))

    def _mixed(self, x: Tensor, shifted: Tensor) -> Tensor:
        """Transform each token once its neighbours are known."""
        inner = torch.relu(self.key(torch.lerp(shifted, x, self.mix_key))).square()
        return torch.sigmoid(self.receptance(torch.lerp(shifted, x, self.mix_receptance))) * self.value(inner)


class BidirectionalRWKV(nn.Module):
    """One layer: time mix and channel mix, each after a layer norm and with a residual."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.time_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time_mix, self.channel_mix = TimeMix(width), ChannelMix(width, inner)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        tokens = tokens + self.time_mix(self.time_norm(tokens), layout, mask)
        return tokens + self.channel_mix(self.channel_norm(tokens), mask)


@register(
    "rwkv",
    mini={"width": 192, "depth": 4, "heads": 6, "mixer_expansion": 1.25, "expansion": 2},
    tiny={"width": 384, "depth": 6, "heads": 6},
    small={"width": 512, "depth": 10, "heads": 8},
    base={"width": 768, "depth": 8, "heads": 12},
)
class RWKV(InterleavedEncoder):
    """Bidirectional RWKV with query attention. The sizes are ours: the paper publishes none.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        mixer_expansion: inner width of the channel mix over D.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        mixer_expansion: float = 4,
        expansion: float = 4,
    ):
        super().__init__(
            width,
            depth,
            lambda: BidirectionalRWKV(width, int(width * mixer_expansion)),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = 2 * width  # a weighted sum of values, and the sum of the weights
