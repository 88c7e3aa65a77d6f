"""Weights of the nearest neighbours, for query expansion and database augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_weights(similarities: Tensor, count: int, alpha: float) -> Tensor:
    """Return weights (..., K): a power of the `count` highest similarities of present candidates, 0 elsewhere."""
    near, places = similarities.topk(min(count, similarities.shape[-1]), dim=-1)
    weights = near.clamp(min=0) ** alpha * (near != -torch.inf)
    return torch.zeros_like(similarities).scatter(-1, places, weights)
