"""Training lists: which images ask, which candidates they get, and the loss of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbones.settings import check_types
from locore import processes
from locore.descriptors.ames import on_disk
from locore.descriptors.embedder import Embedder
from locore.descriptors.store import Descriptors, DescriptorTable
from locore.prefetch import ahead
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.reranker import Shortlist
from locore.training import Training, Validate

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sampling:
    """How lists are drawn from the neighbours of an image.

    Attributes:
        candidates: K of a training list; None = as many as are re-ranked in the end.
        depth: how many neighbours they are drawn from, anew each time; None = as many as candidates.
        fewest, most: positives of a list, as far as there are so many among its neighbours.
        shuffled: candidates in random order, so that a place says nothing; else nearest first, as in evaluation.
        views: of each image, descriptors of one of which a list gets: itself, and changed at random.
        token_dropout: share of the local descriptors that is masked, in every image anew.
        label_smoothing: of the loss, see `torch.nn.functional.cross_entropy`.
    """

    candidates: int | None = None
    depth: int | None = None
    fewest: int = 0
    most: int | None = None
    shuffled: bool = True
    views: int = 1
    token_dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_types(self)
        if self.most is not None and self.most < self.fewest:
            raise ValueError(f"Sampling.most {self.most} is less than Sampling.fewest {self.fewest}.")
        if self.views < 1:
            raise ValueError(f"Sampling.views = {self.views} must be at least 1, the image itself.")
        for name in ("token_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Sampling.{name} = {getattr(self, name)} must be in [0, 1).")

    def sizes(self, reranked: int) -> tuple[int, int]:
        """K and depth where `reranked` candidates are re-ranked in the end."""
        count = self.candidates or reranked
        if self.depth and self.depth < count:
            raise ValueError(f"Sampling.depth {self.depth} is less than the {count} candidates that are drawn from it.")
        return count, self.depth or count

    def draw(self, right: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """(count,) places among neighbours of which `right` (depth,) bool are positives."""
        places = random.permutation(len(right))
        drawn = int(right[places[:count]].sum())
        most = count if self.most is None else self.most
        # As many negatives as there are bound it from below, as many positives as there are from above.
        wanted = max(min(max(drawn, self.fewest), most, int(right.sum()), count), count - int((~right).sum()))
        chosen = np.concatenate([places[right[places]][:wanted], places[~right[places]][: count - wanted]])
        return random.permutation(chosen) if self.shuffled else np.sort(chosen)


@dataclass(frozen=True)
class Lists:
    """Training lists: each image asks, candidates are drawn from its nearest neighbours.

    Attributes:
        descriptors: of N images. neighbours: (N, depth) of each. labels: (N,) classes.
        candidates: K of a list. sampling: how they are drawn.
    """

    descriptors: DescriptorTable
    neighbours: np.ndarray
    labels: np.ndarray
    candidates: int
    sampling: Sampling = Sampling()

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> tuple[Shortlist, Tensor]:
        """The lists of a step, or of several processes this one's: every image asks once an epoch, its candidates are
        drawn anew.
        """
        count, random = len(self.labels), np.random.default_rng((seed, step, 1))
        rows = np.array(
            [_permutation(seed, p // count, count)[p % count] for p in range(step * size, (step + 1) * size)]
        )
        right = self.labels[self.neighbours[rows]] == self.labels[rows][:, None]
        places = np.stack([self.sampling.draw(each, self.candidates, random) for each in right])
        rows, places, right = (processes.share(each) for each in (rows, places, right))
        listed, labels = (np.take_along_axis(x, places, axis=1) for x in (self.neighbours[rows], right))
        shortlist = Shortlist.gather(
            self.descriptors, torch.from_numpy(rows), self.descriptors, torch.from_numpy(listed), device
        )
        return shortlist, torch.from_numpy(labels.astype(np.int64)).to(device)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which the images of an epoch ask."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class Joint(nn.Module):
    """A re-ranker, and the vision model that makes the descriptors it reads, as one thing to train."""

    def __init__(self, reranker: ListwiseReranker | PairwiseReranker, embedder: Embedder):
        super().__init__()
        self.reranker, self.embedder = reranker, embedder

    def forward(self, shortlist: Shortlist) -> Tensor:
        return self.reranker(shortlist)

    def train(self, mode: bool = True) -> Joint:
        super().train(mode)
        self.embedder.eval()  # batch norm keeps its statistics
        return self


def fit_reranker(
    model: ListwiseReranker | PairwiseReranker,
    lists: Lists,
    training: Training,
    validate: Validate,
    folder: Path,
    seed: int,
    embedder: Embedder | None = None,
    embedder_rate: float = 0.0,
) -> dict:
    """Train a re-ranker on lists; other arguments, result and errors as `Training.fit`.

    Args:
        embedder: what makes the lists' descriptors, trained as well (RRT's second setting: Tan et al. 2021, section 4);
            None = it stays as it is. embedder_rate: its learning rate over the re-ranker's.
    """
    if isinstance(model, ListwiseReranker):
        model.encoder.gradient_checkpointing = training.gradient_checkpointing
    trained_model: nn.Module = model
    groups = None
    if embedder:
        trained_model = Joint(model, embedder)
        groups = [
            {"params": list(model.parameters()), "scale": 1.0},
            {"params": list(embedder.parameters()), "scale": embedder_rate},
        ]
    sampling = lists.sampling
    loaded: list[Iterator[tuple[Shortlist, Tensor]]] = []

    def losses(trained: nn.Module, step: int, device: torch.device) -> Iterator[Tensor]:
        if not loaded:  # here, because only now is it known at which step the training goes on
            # Several steps that wait for a GPU wait in the computer's own memory.
            read, where = (ahead, CPU) if on_disk(lists.descriptors) else (map, device)
            loaded.append(
                iter(read(lambda s: lists.batch(s, training.batch, seed, where), range(step, training.steps)))
            )
        shortlist, labels = next(loaded[0])
        for part, part_labels in _parts(shortlist, labels, training.accumulation):
            part, part_labels = part.to(device), part_labels.to(device)
            if sampling.token_dropout:
                part = replace(
                    part,
                    query=_dropped(part.query, sampling.token_dropout),
                    candidates=_dropped(part.candidates, sampling.token_dropout),
                )
            loss = model.loss(trained(part), part_labels, sampling.label_smoothing)
            yield loss / training.accumulation

    return training.fit(trained_model, losses, validate, folder, seed, groups)


def _dropped(descriptors: Descriptors, share: float) -> Descriptors:
    """The same with a random share of the locals masked."""
    return replace(descriptors, mask=descriptors.mask & (torch.rand_like(descriptors.weight) >= share))


def _parts(shortlist: Shortlist, labels: Tensor, count: int) -> Iterator[tuple[Shortlist, Tensor]]:
    """The batch cut into equal parts."""
    for rows in torch.arange(len(labels), device=labels.device).chunk(count):
        part = Shortlist(shortlist.similarities[rows], shortlist.query[rows], shortlist.candidates[rows])
        yield part, labels[rows]
