"""Training lists: which images are queries, which candidates they get, and the loss of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbones.registry import suggest
from backbones.settings import check_types
from locore.datasets.benchmark import JUNK, RIGHT
from locore.descriptors.ames_files import on_disk
from locore.descriptors.embedder import Embedder
from locore.descriptors.table import Descriptors, DescriptorTable
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.reranker import IGNORED, Shortlist
from locore.training.loop import Training, Validate
from locore.training.losses import LOSSES, OWN
from locore.utils import distributed
from locore.utils.prefetch import ahead

Batch = tuple[Shortlist, Tensor]  # lists, and the labels (B, K) of their candidates


@dataclass(frozen=True)
class Sampling:
    """How the lists of a training are drawn from the neighbours of each image.

    Attributes:
        candidates: K of a training list; None = as many as a pass of the re-ranker reads.
        depth: number of neighbours that candidates are drawn from, anew each time; None = as many as candidates.
        min_positives: positives in a list at least, as far as its neighbours hold so many.
        max_positives: positives in a list at most; None = no limit.
        hard_negatives: a list is the nearest neighbours after positives were left out at random, until 1 to
            `max_positives` of them are left (None = half of the list): so it holds wrong candidates however large a
            class is. The neighbours are as deep as this needs.
        shuffle: put candidates in random order (supplement, section A); False = nearest first, as in evaluation.
        query_positives: only images with at least so many positives among their neighbours are queries (RRT: 5 of a
            class); 0 = all images are.
        views: views of each image, one of which is drawn for a list: the image itself and random changes of it.
        token_dropout: share of the local descriptors that is masked, drawn anew for every image.
        loss: "own" = the re-ranker's, as published: of list-wise ones the cross-entropy of all tokens, of others that
            of all pairs; or one over the scores of a list: "softmax", "weighted_ranknet" or "smooth_ap".
        label_smoothing: of the re-ranker's own loss, see `torch.nn.functional.cross_entropy`.
    """

    candidates: int | None = None
    depth: int | None = None
    min_positives: int = 0
    max_positives: int | None = None
    hard_negatives: bool = False
    shuffle: bool = True
    query_positives: int = 0
    views: int = 1
    token_dropout: float = 0.0
    loss: str = OWN
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_types(self)
        if self.max_positives is not None and self.max_positives < self.min_positives:
            raise ValueError(
                f"Sampling.max_positives {self.max_positives} is less than Sampling.min_positives {self.min_positives}."
            )
        if self.hard_negatives and (self.depth or self.min_positives):
            raise ValueError(
                "Sampling.hard_negatives says how deep lists are drawn and how many positives they have; leave "
                "Sampling.depth and Sampling.min_positives out."
            )
        if self.loss not in (known := [OWN, *LOSSES]):
            raise ValueError(f"Unknown Sampling.loss '{self.loss}'{suggest(self.loss, known)}")
        if self.loss != OWN and self.label_smoothing:
            raise ValueError(f"Sampling.label_smoothing belongs to Sampling.loss = '{OWN}'; leave it out.")
        if self.views < 1:
            raise ValueError(f"Sampling.views = {self.views} must be at least 1, the image itself.")
        for name in ("token_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Sampling.{name} = {getattr(self, name)} must be in [0, 1).")

    def sizes(self, reranked: int) -> tuple[int, int]:
        """Return K and the depth for a re-ranker that reads `reranked` candidates in a pass."""
        count = self.candidates or reranked
        if self.depth and self.depth < count:
            raise ValueError(f"Sampling.depth {self.depth} is less than the {count} candidates that are drawn from it.")
        return count, self.depth or count

    def draw(self, right: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw the candidates of a list.

        Args:
            right: (depth,) bool, which of the neighbours are positives.
            count: number of candidates.
            random: source of randomness.

        Returns:
            (count,) places among the neighbours.
        """
        if self.hard_negatives:
            return self._draw_nearest(right, count, random)
        places = random.permutation(len(right))
        drawn = int(right[places[:count]].sum())
        most = count if self.max_positives is None else self.max_positives
        # The negatives that there are bound it from below, the positives that there are from above.
        wanted = max(min(max(drawn, self.min_positives), most, int(right.sum()), count), count - int((~right).sum()))
        chosen = np.concatenate([places[right[places]][:wanted], places[~right[places]][: count - wanted]])
        return random.permutation(chosen) if self.shuffle else np.sort(chosen)

    def _draw_nearest(self, right: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw the nearest neighbours that are left after positives were left out; as `draw`."""
        positives = random.permutation(np.flatnonzero(right))
        most = int(random.integers(1, (self.max_positives or count // 2) + 1))
        # Where there are too few wrong ones to fill the list, more positives stay.
        kept = np.isin(np.arange(len(right)), positives[max(most, count - int((~right).sum())) :], invert=True)
        nearest = np.flatnonzero(kept)[:count]
        return random.permutation(nearest) if self.shuffle else nearest


@dataclass(frozen=True)
class Lists:
    """Training lists: each image is a query, its candidates are drawn from its nearest neighbours.

    Attributes:
        descriptors: of N images.
        neighbours: (N, depth) neighbours of each image.
        judged: given images (M,) and others (M, K), which of these are `RIGHT`, `WRONG` or `JUNK`, see `ImageSet`.
        candidates: K of a list.
        sampling: how candidates are drawn.
    """

    descriptors: DescriptorTable
    neighbours: np.ndarray
    judged: Callable[[np.ndarray, np.ndarray], np.ndarray]
    candidates: int
    sampling: Sampling = Sampling()

    def parts(self, step: int, size: int, seed: int, device: torch.device, count: int) -> Iterator[Batch]:
        """Yield the lists of a step in equal parts, each read when it is asked for.

        With several processes they are the share of this one. Every image is a query once an epoch, and its candidates
        are drawn anew.
        """
        images, random = len(self.asking), np.random.default_rng((seed, step, 1))
        rows = self.asking[
            [_permutation(seed, p // images, images)[p % images] for p in range(step * size, (step + 1) * size)]
        ]
        places, judged = self._drawn(rows, random)
        rows, places, judged = (distributed.share(each) for each in (rows, places, judged))
        candidates, labels = (np.take_along_axis(x, places, axis=1) for x in (self.neighbours[rows], judged))
        for part in torch.arange(len(rows)).chunk(count):
            asked, listed = (torch.from_numpy(x.astype(np.int64))[part] for x in (rows, candidates))
            shortlist = Shortlist.gather(self.descriptors, asked, self.descriptors, listed, device)
            counted = np.where(labels == JUNK, IGNORED, labels.astype(np.int64))
            yield shortlist, torch.from_numpy(counted)[part].to(device)

    @cached_property
    def asking(self) -> np.ndarray:
        """The images that are queries.

        Raises:
            ValueError: there are none.
        """
        rows, least = np.arange(len(self.neighbours)), self.sampling.query_positives
        if least:
            parts = np.array_split(rows, max(1, self.neighbours.size // 10**7))
            right = [(self.judged(part, self.neighbours[part]) == RIGHT).sum(1) for part in parts]
            rows = rows[np.concatenate(right) >= least]
        if not len(rows):
            raise ValueError(
                f"No image has {least} positives among its nearest {self.neighbours.shape[1]}; lower "
                "Sampling.query_positives, or raise Sampling.depth."
            )
        return rows

    def share_of_right(self, seed: int) -> float:
        """Return the share of right candidates among those that count, in the lists of up to 1,000 queries."""
        random = np.random.default_rng((seed, 2))
        places, judged = self._drawn(self.asking[random.permutation(len(self.asking))[:1000]], random)
        drawn = np.take_along_axis(judged, places, axis=1)
        return float((drawn[drawn != JUNK] == RIGHT).mean())

    def _drawn(self, rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the candidates of queries: (Q, K) their places among the neighbours, and how these are judged."""
        judged = self.judged(rows, self.neighbours[rows])
        return np.stack([self.sampling.draw(each == RIGHT, self.candidates, random) for each in judged]), judged


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the queries in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class Joint(nn.Module):
    """A re-ranker and the vision model of the descriptors that it reads, trained together."""

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
    validate: Validate | None,
    folder: Path,
    seed: int,
    embedder: Embedder | None = None,
    embedder_lr_scale: float = 0.0,
    main: str = "mAP@R",
) -> dict:
    """Train a re-ranker on lists; result and errors as `Training.fit`.

    Args:
        model: the re-ranker, on its device.
        lists: the training lists.
        training: settings of the loop.
        validate: returns the validation metrics by name; None = the last weights are kept.
        folder: of the checkpoints.
        seed: of everything that is random.
        embedder: the vision model of the lists' descriptors, trained as well (RRT's second setting: Tan et al. 2021,
            section 4); None = descriptors stay as they are.
        embedder_lr_scale: learning rate of the embedder over that of the re-ranker.
        main: the validation metric that decides where `training` names none.
    """
    recomputed = model.encoder if isinstance(model, ListwiseReranker) else model
    recomputed.gradient_checkpointing = training.gradient_checkpointing
    trained: nn.Module = model
    groups = None
    if embedder:
        trained = Joint(model, embedder)
        groups = [
            {"params": list(model.parameters()), "scale": 1.0},
            {"params": list(embedder.parameters()), "scale": embedder_lr_scale},
        ]
    device, sampling, training = distributed.device(), lists.sampling, training.over(len(lists.asking))
    # Lists from disk are read ahead, and wait for a GPU in the memory of the computer.
    read, waiting = (ahead, torch.device("cpu")) if on_disk(lists.descriptors) else (map, device)

    def parts(step: int) -> Iterable[Batch]:
        found = lists.parts(step, training.batch_size, seed, waiting, training.grad_accumulation_steps)
        return found if embedder else list(found)  # of an embedder each part has a graph of its own

    def batches(first: int) -> Iterable[Iterable[Batch]]:
        return read(parts, range(first, training.steps))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if sampling.loss == OWN:
            return model.loss(logits, labels, sampling.label_smoothing)
        scores = model.scores(logits) if isinstance(model, ListwiseReranker) else logits
        return LOSSES[sampling.loss](scores.float(), labels)

    def losses(wrapped: nn.Module, batch: Iterable[Batch]) -> Iterator[Tensor]:
        for part, labels in batch:
            part, labels = part.to(device), labels.to(device)
            if sampling.token_dropout:
                query, candidates = (_dropped(d, sampling.token_dropout) for d in (part.query, part.candidates))
                part = replace(part, query=query, candidates=candidates)
            yield loss(wrapped(part), labels) / training.grad_accumulation_steps

    return training.fit(trained, batches, losses, validate, folder, seed, groups, main)


def _dropped(descriptors: Descriptors, share: float) -> Descriptors:
    """Mask a random share of the local descriptors."""
    return replace(descriptors, mask=descriptors.mask & (torch.rand_like(descriptors.weight) >= share))
