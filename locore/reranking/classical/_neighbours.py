"""Weights of the nearest neighbours, for query expansion and database augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_weights(similarities: Tensor, count: int, alpha: float) -> Tensor:
    """(..., K) -> the power of the `count` highest, where they are candidates that are there; 0 for all others."""
    near, places = similarities.topk(min(count, similarities.shape[-1]), dim=-1)
    weights = near.clamp(min=0) ** alpha * (near != -torch.inf)
    return torch.zeros_like(similarities).scatter(-1, places, weights)
