"""Local descriptors as bits (AMES, ELViS: distilled weights)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGMA = 1e-6  # of the smooth sign in training


class Binarised(nn.Module):
    """The sign of projected, normalised descriptors; smooth in training, so that the projection learns.

    Args:
        local_dim: width of a local descriptor.
        bits: of a binary one.
    """

    def __init__(self, local_dim: int, bits: int):
        super().__init__()
        self.W = nn.Parameter(nn.init.orthogonal_(torch.empty(local_dim, bits)))

    def forward(self, local: Tensor) -> Tensor:
        """Return -1 or 1 (…, bits) of descriptors (…, D), or of bits that were stored as such."""
        if local.shape[-1] != len(self.W):
            return local.sign()
        projected = F.normalize(local, dim=-1) @ self.W
        return torch.erf(projected / math.sqrt(2 * SIGMA)) if self.training else projected.sign()


def remapping(local_dim: int, width: int, bits: int | None) -> nn.Sequential:
    """Build the projection of local descriptors to tokens, under the published names; `bits` = by way of bits."""
    first = [nn.Linear(local_dim, width)] if bits is None else [Binarised(local_dim, bits), nn.Linear(bits, width)]
    return nn.Sequential(*first, nn.LayerNorm(width))


def inferred(tensors: dict[str, Tensor]) -> dict[str, int | None]:
    """Infer local_dim, width and bits from published tensors.

    Raises:
        KeyError: a tensor is missing.
    """
    if "remap_local.0.W" in tensors:
        local_dim, bits = tensors["remap_local.0.W"].shape
        return {"local_dim": local_dim, "width": len(tensors["remap_local.1.weight"]), "bits": bits}
    width, local_dim = tensors["remap_local.0.weight"].shape
    return {"local_dim": local_dim, "width": width, "bits": None}
