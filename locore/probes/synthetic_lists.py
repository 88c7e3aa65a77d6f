"""Synthetic lists on which a candidate can be right only because of another one.

This is the advantage of a list-wise re-ranker over any pair-wise one: a linked candidate shares nothing with the query,
but shares a local descriptor with an easy candidate, which shares another with the query. Two wrong candidates share
one with each other, so that a shared descriptor alone is not enough. Photographs need this on few lists; these lists
all do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Shortlist

CANDIDATES, LOCALS, WIDTH = 7, 3, 24
NOISE = 0.1  # length of what is added to a descriptor, whose own is 1
WRONG, LINKED, EASY = 0, 1, 2


def synthetic_lists(count: int, random: torch.Generator) -> tuple[Shortlist, Tensor]:
    """Draw lists of one easy, one linked and five wrong candidates, in random order.

    Args:
        count: number of lists.
        random: source of randomness.

    Returns:
        The lists, and (count, CANDIDATES) long: WRONG, LINKED or EASY.
    """
    local = F.normalize(torch.randn(count, 1 + CANDIDATES, LOCALS, WIDTH, generator=random), dim=-1)
    for image, other in ((1, 0), (2, 1), (4, 3)):  # easy and query, linked and easy, two wrong ones
        local[:, image, 0] = local[:, other, -1]
    local = local + NOISE * WIDTH**-0.5 * torch.randn(local.shape, generator=random)
    places = torch.rand(local.shape[:3], generator=random).argsort(2)
    local = local.gather(2, places[..., None].expand(local.shape))
    order = torch.rand(count, CANDIDATES, generator=random).argsort(1)
    kinds = torch.tensor([EASY, LINKED] + [WRONG] * (CANDIDATES - 2))[order]
    rows = torch.arange(count)[:, None]
    return Shortlist(torch.zeros(count, CANDIDATES), _images(local[:, 0]), _images(local[rows, 1 + order])), kinds


def above_wrong(scores: Tensor, kinds: Tensor, kind: int) -> np.ndarray:
    """Return (B,) the share of a list's wrong candidates that score below the candidate of one kind; 0.5 is chance.

    Args:
        scores: (B, K).
        kinds: (B, K) long.
        kind: EASY or LINKED.
    """
    one = scores.gather(1, (kinds == kind).long().argmax(1, keepdim=True))
    below = (scores < one).float() + 0.5 * (scores == one)
    wrong = (kinds == WRONG).float()
    return ((below * wrong).sum(1) / wrong.sum(1)).numpy()


def _images(local: Tensor) -> Descriptors:
    """Build images with local descriptors alone."""
    lead = local.shape[:-1]
    return Descriptors(
        global_descriptor=torch.ones(*lead[:-1], 1),
        local=local,
        position=torch.zeros(*lead, 2),
        scale=torch.zeros(lead, dtype=torch.long),
        mask=torch.ones(lead, dtype=torch.bool),
        weight=torch.ones(lead),
    )
