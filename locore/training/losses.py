"""Losses over the scores of a list, beside the cross-entropy of tokens or pairs that re-rankers bring themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.reranking.reranker import IGNORED


def softmax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of the softmax over the candidates, averaged over the right ones (ListNet's top-one
    loss: Cao et al. 2007).

    Args:
        scores: (B, K).
        labels: (B, K) long, 1 = right, 0 = wrong, `IGNORED` = not counted.
    """
    right, counted = labels == 1, labels != IGNORED
    log_shares = F.log_softmax(scores.masked_fill(~counted, -torch.inf), dim=1)
    return _mean_of_lists(-torch.where(right, log_shares, 0).sum(1) / right.sum(1).clamp(min=1), right)


def weighted_ranknet_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the logistic loss of all pairs of a right and a wrong candidate (RankNet: Burges et al. 2005), each
    weighted by one over the sum of their places (FIRST: Reddy et al. 2024), which are those of the scores here.

    Args:
        scores: as `softmax_loss`.
        labels: as `softmax_loss`.
    """
    right, wrong = labels == 1, labels == 0
    places = scores.detach().masked_fill(labels == IGNORED, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    pairs = right[:, :, None] & wrong[:, None]
    weights = pairs / (places[:, :, None] + places[:, None] + 2)
    losses = weights * F.softplus(scores[:, None] - scores[:, :, None])
    total = losses.sum((1, 2)) / weights.sum((1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)
    return _mean_of_lists(total, pairs.any(2))


def smooth_ap_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute one less the average precision, each comparison a sigmoid (Smooth-AP: Brown et al., ECCV 2020, equation
    7; the scores are logits, so the temperature is 1).

    Args:
        scores: as `softmax_loss`.
        labels: as `softmax_loss`.
    """
    right, counted = labels == 1, labels != IGNORED
    above = torch.sigmoid(scores[:, None] - scores[:, :, None])  # [b, i, j]: j stands above i
    above = above.masked_fill(torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device), 0)
    among_right = 1 + (above * right[:, None]).sum(2)
    among_all = 1 + (above * counted[:, None]).sum(2)
    precision = torch.where(right, among_right / among_all, 0)
    return _mean_of_lists(1 - precision.sum(1) / right.sum(1).clamp(min=1), right)


def _mean_of_lists(losses: Tensor, right: Tensor) -> Tensor:
    """Average losses (B,) over the lists that have something right, (B, K) bool; 0 if none has."""
    asked = right.any(1)
    return (losses * asked).sum() / asked.sum().clamp(min=1)


OWN = "own"  # the loss that the re-ranker brings itself
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": softmax_loss,
    "weighted_ranknet": weighted_ranknet_loss,
    "smooth_ap": smooth_ap_loss,
}
