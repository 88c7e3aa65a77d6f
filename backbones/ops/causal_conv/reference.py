"""The definition of the convolution by PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by PyTorch's own convolution; arguments and result as `causal_conv`."""
    reach = weight.shape[-1] - 1
    outputs = []
    for direction, (taps, shift) in enumerate(zip(weight, bias, strict=True)):
        padding = (0, reach) if direction else (reach, 0)
        taps = taps.flip(-1) if direction else taps
        mixed = F.conv1d(F.pad(x.transpose(1, 2), padding), taps[:, None], shift, groups=x.shape[-1])
        outputs.append(F.silu(mixed).transpose(1, 2))
    return torch.stack(outputs)
