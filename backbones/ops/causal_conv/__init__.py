"""Mamba's depthwise convolution and SiLU, looking back or ahead, in the layout (batch, T, channels).

    y_t = silu(bias + sum_j weight_j x_{t-j})            with x_{t+j} where it looks ahead

`causal_conv_reference` is the definition. `causal_conv` runs a compiled kernel on the CPU, where PyTorch's depthwise
convolution takes longer than the rest of the layer, and the reference elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from backbones.ops._numerics import compiled
from backbones.ops.causal_conv.cpu import causal_conv_compiled
from backbones.ops.causal_conv.reference import causal_conv_reference

__all__ = ["causal_conv", "causal_conv_reference"]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve x in one or two directions.

    Args:
        x: (batch, T, channels).
        weight: (directions, channels, taps); the last tap is the token itself, earlier ones are further away: tokens
            before it in the first direction, after it in the second.
        bias: (directions, channels).

    Returns:
        (directions, batch, T, channels).
    """
    if compiled(x, weight, bias):
        return causal_conv_compiled(x, weight, bias)
    return causal_conv_reference(x, weight, bias)
