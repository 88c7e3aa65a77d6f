"""Training lists: which images ask, which candidates they get, and the loss of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from locore.descriptors.store import Descriptors
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.reranker import Shortlist
from locore.training import Training, Validate


@dataclass(frozen=True)
class Lists:
    """Training lists: each image asks, its nearest neighbours are the candidates.

    Attributes:
        descriptors: of N images. candidates: (N, K) neighbours of each. labels: (N,) classes.
    """

    descriptors: Descriptors
    candidates: np.ndarray
    labels: np.ndarray

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> tuple[Shortlist, Tensor]:
        """The lists of a step: every image once an epoch, each list's candidates in an order of its own."""
        places = np.arange(step * size, (step + 1) * size)
        count = len(self.labels)
        rows = np.array([_permutation(seed, int(place // count), count)[place % count] for place in places])
        shuffled = np.random.default_rng((seed, step, 1)).permuted(self.candidates[rows], axis=1)
        labels = (self.labels[shuffled] == self.labels[rows][:, None]).astype(np.int64)
        shortlist = Shortlist.gather(
            self.descriptors, torch.from_numpy(rows), self.descriptors, torch.from_numpy(shuffled), device
        )
        return shortlist, torch.from_numpy(labels).to(device)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which the images of an epoch ask."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def fit_reranker(
    model: ListwiseReranker, lists: Lists, training: Training, validate: Validate, folder: Path, seed: int
) -> dict:
    """Train a re-ranker on lists; arguments, result and errors as `Training.fit`."""
    model.encoder.gradient_checkpointing = training.gradient_checkpointing

    def losses(trained: nn.Module, step: int, device: torch.device) -> Iterator[Tensor]:
        shortlist, labels = lists.batch(step, training.batch, seed, device)
        for part, part_labels in _parts(shortlist, labels, training.accumulation):
            yield ListwiseReranker.loss(trained(part), part_labels) / training.accumulation

    return training.fit(model, losses, validate, folder, seed)


def _parts(shortlist: Shortlist, labels: Tensor, count: int) -> Iterator[tuple[Shortlist, Tensor]]:
    """The batch cut into equal parts."""
    for rows in torch.arange(len(labels), device=labels.device).chunk(count):
        part = Shortlist(shortlist.similarities[rows], shortlist.query[rows], shortlist.candidates[rows])
        yield part, labels[rows]
