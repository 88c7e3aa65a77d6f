"""Learned re-rankers that look at one candidate at a time."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import IGNORED, Ranking, Shortlist, only_present, rerankers

VALUES = 2**22  # of a layer's activations at a time in inference: as much memory for every list


class PairwiseReranker(nn.Module, ABC):
    """Scores a query and a candidate; what else is on the list does not matter.

    Attributes:
        width: of its tokens.
        spec: what rebuilds it, where it was made by `create`.
        trained: what it was trained on, saved as it was loaded.
    """

    width: int
    spec: dict[str, Any]
    trained: dict[str, Any] | None = None

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        """The settings that tensors under published names show; None = they are another model's.

        Raises:
            KeyError: they are this one's, and one that shows a setting is missing.
        """
        return None

    @abstractmethod
    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Of N pairs, leading dimensions (N,) -> (N,) that they match."""

    def pairs(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Of N pairs -> (N,) scores that they are sorted by."""
        return self.logits(query, candidate)

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        """Those of descriptors to tokens, each with what it reads of these."""
        return []

    def forward(self, shortlist: Shortlist) -> Tensor:
        """-> (B, K) logits."""
        return self._each(shortlist, self.logits)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy of all pairs.

        Args:
            logits: (B, K).
            labels: (B, K) long, 1 = right, 0 = wrong, `IGNORED` = takes no part.
            smoothing: of the labels.
        """
        counted = labels != IGNORED
        wanted = labels[counted].float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[counted].float(), wanted)

    def values(self, local_count: int) -> int:
        """How many a layer makes of a pair of images with so many local descriptors, for how many pairs fit at once."""
        return 2 * local_count * self.width

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Candidates by score; those not present last, with score -inf."""
        training = self.training
        self.eval()
        at_once = max(1, VALUES // self.values(shortlist.query.local.shape[1]))
        scores = only_present(self._each(shortlist, self.pairs, at_once).float(), shortlist.present)
        self.train(training)
        return Ranking.by(scores)

    @staticmethod
    def _each(shortlist: Shortlist, function, at_once: int | None = None) -> Tensor:
        """(B, K) of a function of N pairs, so many of them at a time; None = all."""
        batch, count = shortlist.similarities.shape
        rows = torch.arange(batch, device=shortlist.similarities.device).repeat_interleave(count)
        places = torch.arange(count, device=rows.device).repeat(batch)
        found = [
            function(shortlist.query[some], shortlist.candidates[some, where])
            for some, where in zip(rows.split(at_once or len(rows)), places.split(at_once or len(rows)), strict=True)
        ]
        return torch.cat(found).view(batch, count)


def start_linear(model: nn.Module, fill: Callable[[Tensor], Tensor]) -> None:
    """Fill the weights of all linear layers as a published training starts them, and their biases with zeros."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fill(module.weight)
            nn.init.zeros_(module.bias)


def count_layers(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many layers have tensors, whose names start with such a prefix and a number."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def square(image: Descriptors) -> int:
    """Side of the grid that an image's locals are.

    Raises:
        ValueError: they are no square grid.
    """
    cells = image.local.shape[1]
    side = round(cells**0.5)
    if side**2 != cells:
        raise ValueError(f"This re-ranker reads a square grid, and images have {cells} local descriptors.")
    return side


def is_learned(method: str) -> bool:
    """Whether a registered re-ranker is one of these."""
    build = rerankers.entry(method).build
    return inspect.isclass(build) and issubclass(build, PairwiseReranker)


def without_weights() -> list[str]:
    """Names of the registered re-rankers that need no training."""
    return [name for name in rerankers.available() if not is_learned(name)]


def create(
    method: str, size: str, local_dim: int | None, global_dim: int | None, settings: dict[str, Any]
) -> PairwiseReranker:
    """One of these for descriptors of such widths, None = of any, in a named size.

    Raises:
        ValueError: unknown name, size or setting, or widths that it cannot be built for.
    """
    known = inspect.signature(rerankers.entry(method).build).parameters
    widths = {n: w for n, w in (("local_dim", local_dim), ("global_dim", global_dim)) if n in known}
    model: Any = rerankers.create(method, size, **widths, **settings)
    model.spec = {
        "method": method,
        "size": size,
        "local_dim": local_dim,
        "global_dim": global_dim,
        "settings": settings,
    }
    return model
