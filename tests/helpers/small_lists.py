"""Small random training lists."""

import numpy as np
import torch

from locore.reranking import Shortlist
from locore.training.lists import Lists
from locore.training.loop import Training

TRAINING = Training(steps=6, batch_size=4, warmup_steps=2, validate_every=2)


def lists(images=30, candidates=5) -> Lists:
    torch.manual_seed(0)
    descriptors = Shortlist.random(images, 1, 4, 12, 20).query
    random = np.random.default_rng(0)
    others = np.stack([random.permutation(np.delete(np.arange(images), i))[:candidates] for i in range(images)])
    return Lists(descriptors, others, threes, candidates)


def threes(rows, others):
    """Judge by classes of three images."""
    return (others // 3 == rows[:, None] // 3).astype(np.int8)
