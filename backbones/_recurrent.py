"""What recurrent layers share: starting values, heads, and a convolution in each direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from backbones.ops.causal_conv import causal_conv

WAYS = 2  # from the first token to the last, and back
FEWEST, MOST = 0.001, 0.1  # of a step at the start


def log_uniform_steps(*shape: int) -> Tensor:
    """Return biases whose softplus is log-uniform in [0.001, 0.1] (Mamba, section 3.6)."""
    step = torch.empty(shape).uniform_(math.log(FEWEST), math.log(MOST)).exp()
    return step + torch.log(-torch.expm1(-step))


def log_rates(*shape: int) -> Tensor:
    """Return the logarithms of decay rates that are uniform in [1, 16], as Mamba-2 starts."""
    return torch.empty(shape).uniform_(1, 16).log()


def channels_in_heads(name: str, width: int, expansion: float, heads: int) -> int:
    """Return the channels of a mixer.

    Args:
        name: registered, for messages.
        width: D.
        expansion: channels over D.
        heads: that share the channels.

    Raises:
        ValueError: they cannot be shared evenly.
    """
    channels = int(width * expansion)
    if channels % heads:
        raise ValueError(f"{name} has {channels} channels, which is not a multiple of {name}.mixer_heads {heads}.")
    return channels


class ConvBothWays(nn.Module):
    """`causal_conv` with taps of its own in each direction: (B, T, channels) -> (directions, B, T, channels)."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        bound = kernel**-0.5
        self.weight = nn.Parameter(torch.empty(WAYS, channels, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(WAYS, channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
