"""Bidirectional RWKV-7 (Peng et al. 2025), with query attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, in_slices, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import WAYS
from backbones.encoder import ListLayout
from backbones.ops.rwkv7 import rwkv7
from backbones.registry import register
from backbones.rwkv import neighbours

STRONGEST = math.exp(-0.5)  # decay of a token, as a logarithm
EPSILON = 64e-5  # of the norm of a head
MIXED = ("r", "w", "k", "v", "a", "g")  # receptance, decay, key, value, learning rate in context, gate


class LowRank(nn.Module):
    """A matrix of low rank, with a function between its two factors."""

    def __init__(self, width: int, rank: int, between: nn.Module):
        super().__init__()
        self.narrow, self.widen, self.between = nn.Linear(width, rank, False), nn.Linear(rank, width, False), between

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.between(self.narrow(x)))


class TimeMix(nn.Module):
    """Token shift, then the recurrence in both directions, whose decays start from biases of their own."""

    def __init__(self, width: int, heads: int, rank: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"Width {width} is not a multiple of {heads} heads.")
        self.heads = heads
        ramp = torch.arange(width) / max(width - 1, 1)
        self.mix = nn.Parameter(ramp.repeat(len(MIXED), 1))
        self.receptance, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay, self.rate = LowRank(width, rank, nn.Tanh()), LowRank(width, rank, nn.Identity())
        self.gate = LowRank(width, rank, nn.Sigmoid())
        # From states that last a thousand tokens to such that last two.
        self.decay_bias = nn.Parameter((-6 + 6 * ramp).repeat(WAYS, 1))
        self.rate_bias = nn.Parameter(torch.zeros(width))
        self.key_scale, self.key_rate = nn.Parameter(torch.full((width,), 0.85)), nn.Parameter(torch.ones(width))
        self.bonus = nn.Parameter(torch.full((width,), 0.1))
        self.head_norm = nn.GroupNorm(heads, width, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x if mask is None else zero_masked(x, mask)
        shifted = neighbours(x)
        of = {name: torch.lerp(shifted, x, share) for name, share in zip(MIXED, self.mix, strict=True)}
        receptance, key, value = self.receptance(of["r"]), self.key(of["k"]), self.value(of["v"])
        rate = (self.rate_bias + self.rate(of["a"])).sigmoid()
        decay, gate = self.decay(of["w"]), self.gate(of["g"])
        with torch.autocast(x.device.type, enabled=False):
            receptance, decay, key, value, rate = full_precision(receptance, decay, key, value, rate)
            mixed = self._scanned(receptance, decay, key, value, rate, mask)
        return self.output(mixed.to(gate.dtype) * gate)

    def _scanned(
        self, receptance: Tensor, decay: Tensor, key: Tensor, value: Tensor, rate: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Scan in both directions: the mean, normalised, and what a token gives itself, (B, T', D)."""
        biases, scale, key_rate, bonus = (
            p.to(key.dtype) for p in (self.decay_bias, self.key_scale, self.key_rate, self.bonus)
        )
        log_w = -STRONGEST * (decay + biases[:, None, None]).sigmoid()
        real = torch.ones_like(key[..., :1]) if mask is None else mask[..., None].to(key.dtype)

        def heads(x: Tensor) -> Tensor:
            return rearrange(x, "... (h d) -> ... h d", h=self.heads)

        # A masked token leaves the state as it was.
        kappa = F.normalize(heads(key * scale), dim=-1) * real[..., None]
        key, value, rate, log_w = key * (1 + (rate - 1) * key_rate) * real, value * real, rate * real, log_w * real
        shared = (heads(x).expand(WAYS, *heads(x).shape) for x in (receptance, key, value, rate))
        asked, keys, values, rates = shared
        found = rwkv7(asked, heads(log_w), keys, values, kappa.expand(WAYS, *kappa.shape), rates) / WAYS
        weight, bias = self.head_norm.weight.to(found.dtype), self.head_norm.bias.to(found.dtype)
        normed = F.group_norm(rearrange(found, "b t h d -> (b t) (h d)"), self.heads, weight, bias, EPSILON)
        itself = heads(receptance * key * bonus).sum(-1, keepdim=True) * heads(value)
        return normed.view_as(key) + itself.flatten(2)


class ChannelMix(nn.Module):
    """Token shift, then a feed-forward with a squared ReLU."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.mix = nn.Parameter(torch.arange(width) / max(width - 1, 1))
        self.key, self.value = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x if mask is None else zero_masked(x, mask)
        return in_slices(self._mixed, x, neighbours(x))

    def _mixed(self, x: Tensor, shifted: Tensor) -> Tensor:
        return self.value(torch.relu(self.key(torch.lerp(shifted, x, self.mix))).square())


class BidirectionalRWKV7(nn.Module):
    """One layer: time mix and channel mix, each after a layer norm and with a residual."""

    def __init__(self, width: int, heads: int, rank: int, inner: int):
        super().__init__()
        self.time_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time_mix, self.channel_mix = TimeMix(width, heads, rank), ChannelMix(width, inner)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        tokens = tokens + self.time_mix(self.time_norm(tokens), mask)
        return tokens + self.channel_mix(self.channel_norm(tokens), mask)


@register(
    "rwkv7",
    mini={"width": 192, "depth": 4, "heads": 6, "mixer_expansion": 1.4375, "expansion": 2},
    tiny={"width": 384, "depth": 6, "heads": 6, "rank": 64},
    small={"width": 512, "depth": 10, "heads": 8, "rank": 64},
    base={"width": 768, "depth": 8, "heads": 12, "rank": 64},
)
class RWKV7(InterleavedEncoder):
    """Bidirectional RWKV-7 with query attention; without the values of the first layer, which theirs mixes into others.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        mixer_heads: heads of the recurrence; None = as many as query attention has.
        rank: of the matrices that give decays, rates and gates.
        mixer_expansion: inner width of the channel mix over D.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        mixer_heads: int | None = None,
        rank: int = 16,
        mixer_expansion: float = 4,
        expansion: float = 4,
    ):
        mixer_heads = mixer_heads or heads
        super().__init__(
            width,
            depth,
            lambda: BidirectionalRWKV7(width, mixer_heads, rank, int(width * mixer_expansion)),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = width * width // mixer_heads
