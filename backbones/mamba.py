"""Bidirectional Mamba, as in Vim (Zhu et al. 2024) and VideoMamba (Li et al. 2024), with query attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones._recurrent import log_uniform_steps
from backbones.encoder import ListLayout
from backbones.ops.causal_conv import causal_conv
from backbones.ops.selective_scan import SKIPPED, selective_scan
from backbones.registry import register


class Direction(nn.Module):
    """Parameters of one direction of a bidirectional Mamba: convolution, step, state matrix and skip."""

    def __init__(self, channels: int, state: int, kernel: int):
        super().__init__()
        rank = math.ceil(channels / 32)
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1, state + 1.0).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(log_uniform_steps(channels))


def mix(directions: Sequence[Any], x: Tensor, mask: Tensor | None) -> Tensor:
    """Convolve and scan in every direction, the second from the end to the start, and sum.

    Args:
        directions: the parameters of each.
        x: (B, T, channels), zero where masked.
        mask: (B, T) bool, True = real; None = all are real.

    Returns:
        (B, T, channels), in float32 unless x is float64.
    """
    with torch.autocast(x.device.type, enabled=False):
        (x,) = full_precision(x)  # a recurrence over thousands of tokens loses too much in bfloat16

        def each(*path: str) -> Tensor:
            """A parameter of every direction, (directions, ...)."""
            return torch.stack([reduce(getattr, path, direction) for direction in directions]).to(x.dtype)

        seen = causal_conv(x, each("conv1d", "weight").squeeze(2), each("conv1d", "bias"))
        rank, state = directions[0].dt_proj.in_features, directions[0].A_log.shape[1]
        rows = rearrange(seen, "way b t c -> way (b t) c")
        low, B, C = torch.bmm(rows, each("x_proj", "weight").mT).split([rank, state, state], dim=-1)
        step = torch.baddbmm(each("dt_proj", "bias")[:, None], low, each("dt_proj", "weight").mT).view_as(seen)
        if mask is not None:
            step = step.masked_fill(~mask[:, :, None], SKIPPED)
        B, C = (rearrange(t, "way (b t) n -> way b t n", b=len(x)) for t in (B, C))
        return selective_scan(seen, step, -each("A_log").exp(), B, C, each("D"))


class BidirectionalMamba(nn.Module):
    """One residual layer: shared projections, a scan in each direction, outputs gated and averaged.

    Args:
        width: D.
        expansion: channels over D.
        state: N, states a channel.
        kernel: taps of the convolution.
    """

    def __init__(self, width: int, expansion: float, state: int, kernel: int):
        super().__init__()
        channels = int(width * expansion)
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.ahead, self.back = Direction(channels, state, kernel), Direction(channels, state, kernel)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Mix along the sequence: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        # Two products rather than one cut in halves: the kernels want their tokens side by side in memory.
        normed = self.norm(tokens)
        inner, gate = (F.linear(normed, weight) for weight in self.in_proj.weight.chunk(2))
        mixed = mix((self.ahead, self.back), inner if mask is None else zero_masked(inner, mask), mask)
        return tokens + F.linear(mixed.to(gate.dtype) * F.silu(gate), self.out_proj.weight / 2)


@register(
    "mamba",
    mini={"width": 192, "depth": 4, "heads": 6, "state": 8, "mixer_expansion": 1},
    tiny={"width": 384, "depth": 6, "heads": 6},
    small={"width": 512, "depth": 11, "heads": 8},
    base={"width": 768, "depth": 9, "heads": 12},
)
class Mamba(InterleavedEncoder):
    """Bidirectional Mamba with query attention. The sizes are ours: the paper publishes none.

    Args:
        width: D.
        depth: number of layers.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: heads of query attention.
        state: N, states a channel.
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
        state: int = 16,
        kernel: int = 4,
        mixer_expansion: float = 2,
        expansion: float = 4,
    ):
        super().__init__(
            width,
            depth,
            lambda: BidirectionalMamba(width, mixer_expansion, state, kernel),
            query_attention_layers,
            heads,
            expansion,
        )
        self.state_size = int(width * mixer_expansion) * state
