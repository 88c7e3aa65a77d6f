"""The definition of the selective scan, token after token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan_reference(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan token after token; arguments and result as `selective_scan`."""
    delta, total = F.softplus(step), torch.zeros_like(x[0])
    driven = delta * x
    for direction in range(len(x)):
        state = x.new_zeros(*x.shape[1:2], x.shape[3], A.shape[2])
        outputs: list[Tensor] = []
        tokens = range(x.shape[2])
        for t in reversed(tokens) if direction else tokens:
            now, drive = delta[direction, :, t, :, None], driven[direction, :, t, :, None]
            state = torch.exp(now * A[direction]) * state + drive * B[direction, :, t, None, :]
            outputs.append((state * C[direction, :, t, None, :]).sum(-1) + D[direction] * x[direction, :, t])
        total = total + torch.stack(outputs[::-1] if direction else outputs, dim=1)
    return total
