"""Bidirectional Mamba, as in Vim (Zhu et al. 2024) and VideoMamba (Li et al. 2024), with query attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.blocks import full_precision, zero_masked
from backbones.encoder import ListLayout
from backbones.ops.selective_scan import selective_scan
from backbones.query_attention import InterleavedEncoder
from backbones.registry import register


class Direction(nn.Module):
    """What each direction of a bidirectional Mamba has for itself: convolution, step, state matrix and skip."""

    def __init__(self, channels: int, state: int, kernel: int):
        super().__init__()
        self.rank = math.ceil(channels / 32)
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.x_proj = nn.Linear(channels, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.A_log = nn.Parameter(torch.arange(1, state + 1.0).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        # Steps start log-uniform in [0.001, 0.1] (Mamba, section 3.6): the bias is their inverse softplus.
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        step = torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor, mask: Tensor, reverse: bool) -> Tensor:
        """x (B, T, channels), zero where masked -> (B, T, channels)."""
        reach = self.conv1d.kernel_size[0] - 1
        weight = self.conv1d.weight.flip(-1) if reverse else self.conv1d.weight
        padded = F.pad(x.transpose(1, 2), (0, reach) if reverse else (reach, 0))
        x = F.silu(F.conv1d(padded, weight, self.conv1d.bias, groups=x.shape[-1])).transpose(1, 2)
        step, B, C = self.x_proj(x).split([self.rank, *[self.A_log.shape[1]] * 2], dim=-1)
        # A step of zero leaves the state as it is: a masked token is walked over.
        delta = F.softplus(self.dt_proj(step)) * mask[:, :, None]
        with torch.autocast(x.device.type, enabled=False):
            x, delta, A, B, C, D = full_precision(x, delta, -self.A_log.exp(), B, C, self.D)
            return selective_scan(x, delta, A, B, C, D, reverse)


class BidirectionalMamba(nn.Module):
    """One residual layer: shared projections, a scan in each direction, outputs gated and averaged.

    Args:
        width: D. expansion: channels over D. state: N, states a channel. kernel: taps of the convolution.
    """

    def __init__(self, width: int, expansion: float, state: int, kernel: int):
        super().__init__()
        channels = int(width * expansion)
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.ahead, self.back = Direction(channels, state, kernel), Direction(channels, state, kernel)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        """tokens (B, T', D), mask (B, T') -> (B, T', D)."""
        x, gate = self.in_proj(self.norm(tokens)).chunk(2, dim=-1)
        x = zero_masked(x, mask)
        mixed = self.ahead(x, mask, reverse=False) + self.back(x, mask, reverse=True)
        return tokens + self.out_proj(mixed * (F.silu(gate) / 2))


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
        width: D. depth: layers. query_attention_layers: those that query attention follows, None = all.
        heads: heads of query attention. state: N. kernel: taps of the convolution.
        mixer_expansion: Mamba channels over D. expansion: query attention's feed-forward width over D.
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
