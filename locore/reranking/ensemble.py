"""Global similarity and the score of a re-ranker together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from locore.reranking.reranker import Ranking, Reranker, Shortlist, only_present
from locore.utils.progress import track

ALPHAS = np.linspace(0, 1, 21).round(2)
TEMPERATURES = np.concatenate([np.linspace(0.05, 1, 20).round(2), [1.5, 2.0, 3.0, 5.0]])
SEARCH_WEIGHT = 0.5  # α where nothing was chosen
SPREAD = 1e-6  # standard deviation of a list at least, so that equal values stay equal

Quality = Callable[[Tensor], float]  # of an order (Q, K), higher is better


@dataclass(frozen=True)
class Ensemble:
    """The global-local ensemble of AMES (Suma et al. 2024): s = α·g + (1 − α)·σ(t·ℓ), for scores that are logits.

    Attributes:
        alpha: α, weight of the global similarity g.
        temperature: t, of the raw local score ℓ.
    """

    alpha: float
    temperature: float

    def __call__(self, similarities: Tensor, scores: Tensor) -> Tensor:
        """Combine similarities and raw scores, (B, K) each."""
        return self.alpha * similarities + (1 - self.alpha) * torch.sigmoid(self.temperature * scores)

    @classmethod
    def fit(cls, similarities: Tensor, scores: Tensor, quality: Quality) -> Ensemble:
        """Choose the best ensemble of the grid on a validation set; the first of equally good ones.

        Args:
            similarities: (Q, K).
            scores: (Q, K).
            quality: of an order (Q, K), higher is better.
        """
        grid = [cls(float(alpha), float(temperature)) for alpha in ALPHAS for temperature in TEMPERATURES]
        return _best(grid, similarities, scores, quality)


@dataclass(frozen=True)
class StandardisedEnsemble:
    """s = α·z(g) + (1 − α)·z(ℓ), z standardised over the list: for scores of any scale.

    Attributes:
        alpha: α, weight of the global similarity g; 1 = the order of the search.
    """

    alpha: float
    temperature = None  # has none, where metrics and tables name that of `Ensemble`

    def __call__(self, similarities: Tensor, scores: Tensor) -> Tensor:
        """Combine similarities and scores, (B, K) each; a score of -inf marks a candidate that is not present."""
        present = scores != -torch.inf
        combined = self.alpha * _standardised(similarities, present) + (1 - self.alpha) * _standardised(scores, present)
        return only_present(combined, present)

    @classmethod
    def fit(cls, similarities: Tensor, scores: Tensor, quality: Quality) -> StandardisedEnsemble:
        """Choose the best α on a validation set, the highest of equally good ones; arguments as `Ensemble.fit`."""
        return _best([cls(float(alpha)) for alpha in ALPHAS[::-1]], similarities, scores, quality)


@dataclass(frozen=True)
class WithSearch:
    """A re-ranker whose candidates are sorted by its score and by the similarity of the search together.

    Attributes:
        reranker: gives scores.
        ensemble: combines both.
    """

    reranker: Reranker
    ensemble: Ensemble | StandardisedEnsemble

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by the ensemble.

        Raises:
            ValueError: the re-ranker gives an order without scores.
        """
        scores = self.reranker.rerank(shortlist).scores
        if scores is None:
            raise ValueError("This re-ranker gives an order without scores, so it cannot enter an ensemble.")
        combined = self.ensemble(shortlist.similarities.to(scores), scores)
        return Ranking.by(only_present(combined, shortlist.present))


def default_ensemble(reranker: Reranker) -> StandardisedEnsemble:
    """Return the ensemble of a re-ranker without weights, for who has no images to choose it on.

    Its `search_weight` is α: of a grid the one with the highest mAP@R on the training photographs of `groceries`, the
    first 100 candidates, among those with which neither R@1 nor R@10 loses half a point.
    """
    return StandardisedEnsemble(getattr(reranker, "search_weight", SEARCH_WEIGHT))


Kind = TypeVar("Kind", Ensemble, StandardisedEnsemble)


def _best(grid: Iterable[Kind], similarities: Tensor, scores: Tensor, quality: Quality) -> Kind:
    """Return the ensemble with the best order; the first of equally good ones."""
    rated = [
        (quality(each(similarities, scores).argsort(dim=1, descending=True, stable=True)), each)
        for each in track(list(grid), "choosing the ensemble")
    ]
    return max(rated, key=lambda pair: pair[0])[1]


def _standardised(values: Tensor, present: Tensor) -> Tensor:
    """Return values (B, K) with mean 0 and standard deviation 1 over the present candidates of each list."""
    values = values.double().masked_fill(~present, 0.0)
    count = present.sum(dim=1, keepdim=True).clamp(min=1)
    centred = (values - values.sum(dim=1, keepdim=True) / count).masked_fill(~present, 0.0)
    return centred / (centred.square().sum(dim=1, keepdim=True) / count).sqrt().clamp(min=SPREAD)
