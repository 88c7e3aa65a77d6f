"""The base of learned re-rankers that look at one candidate at a time."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import IGNORED, Ranking, Shortlist, check_widths, only_present, rerankers
from locore.utils.memory import values_at_once


class PairwiseReranker(nn.Module, ABC):
    """Scores a query and a candidate, independent of the rest of the list.

    Attributes:
        width: of its tokens.
        spec: arguments that rebuild it, if `create` made it.
        trained: what it was trained on, as it was loaded.
        gradient_checkpointing: in training, read as many pairs at a time as in evaluation, and recompute them in the
            backward pass instead of keeping their activations.
    """

    width: int
    spec: dict[str, Any]
    trained: dict[str, Any] | None = None
    gradient_checkpointing: bool = False

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        """Infer the settings from tensors under the published names; None if they belong to another model.

        Raises:
            KeyError: they belong to this model, and one that shows a setting is missing.
        """
        return None

    @abstractmethod
    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the logits (N,) that N pairs match; descriptors have leading dimensions (N,)."""

    def pairs(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the scores (N,) that N pairs are sorted by."""
        return self.logits(query, candidate)

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        """Return the projections of descriptors to tokens, each with the rows that it reads."""
        return []

    def forward(self, shortlist: Shortlist) -> Tensor:
        """Return the logits (B, K) of all pairs."""
        if not (self.gradient_checkpointing and self.training):
            return self._each(shortlist, self.logits)

        def recomputed(*images: Descriptors) -> Tensor:
            return checkpoint(self.logits, *images, use_reentrant=False)

        return self._each(shortlist, recomputed, self._pairs_at_once(shortlist))

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Compute the binary cross-entropy of all pairs.

        Args:
            logits: (B, K).
            labels: (B, K) long, 1 = right, 0 = wrong, `IGNORED` = not counted.
            smoothing: of the labels.
        """
        counted = labels != IGNORED
        wanted = labels[counted].float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[counted].float(), wanted)

    def values(self, local_count: int) -> int:
        """Return the values that a layer computes for a pair, which bound how many pairs are read at a time.

        Args:
            local_count: local descriptors of an image.
        """
        return 2 * local_count * self.width

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by score; those not present come last, with score -inf."""
        check_widths(self, shortlist)
        training = self.training
        self.eval()
        at_once = self._pairs_at_once(shortlist)
        scores = only_present(self._each(shortlist, self.pairs, at_once).float(), shortlist.present)
        self.train(training)
        return Ranking.by(scores)

    def _pairs_at_once(self, shortlist: Shortlist) -> int:
        """Return how many pairs are read at a time in a bounded memory."""
        at_once = values_at_once(shortlist.similarities.device)
        return max(1, at_once // self.values(shortlist.query.local.shape[1]))

    @staticmethod
    def _each(shortlist: Shortlist, function, at_once: int | None = None) -> Tensor:
        """Apply a function of N pairs to all pairs, (B, K), so many at a time; None = all."""
        batch, count = shortlist.similarities.shape
        rows = torch.arange(batch, device=shortlist.similarities.device).repeat_interleave(count)
        places = torch.arange(count, device=rows.device).repeat(batch)
        found = [
            function(shortlist.query[some], shortlist.candidates[some, where])
            for some, where in zip(rows.split(at_once or len(rows)), places.split(at_once or len(rows)), strict=True)
        ]
        return torch.cat(found).view(batch, count)


def start_linear(model: nn.Module, fill: Callable[[Tensor], Tensor]) -> None:
    """Initialise all linear layers as a published training does: weights by a function, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fill(module.weight)
            nn.init.zeros_(module.bias)


def count_layers(tensors: dict[str, Tensor], prefix: str) -> int:
    """Count the layers whose tensors' names start with a prefix and a number."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def square(image: Descriptors) -> int:
    """Return the side of the grid that an image's local descriptors are.

    Raises:
        ValueError: they are not a square grid.
    """
    cells = image.local.shape[1]
    side = round(cells**0.5)
    if side**2 != cells:
        raise ValueError(f"This re-ranker needs a square grid, and images have {cells} local descriptors.")
    return side


def is_learned(method: str) -> bool:
    """Return whether a registered re-ranker is learned."""
    build = rerankers.entry(method).build
    return inspect.isclass(build) and issubclass(build, PairwiseReranker)


def without_weights() -> list[str]:
    """List the registered re-rankers that need no training."""
    return [name for name in rerankers.available() if not is_learned(name)]


def create(
    method: str, size: str, local_dim: int | None, global_dim: int | None, settings: dict[str, Any]
) -> PairwiseReranker:
    """Create a learned re-ranker.

    Args:
        method: registered name.
        size: named size.
        local_dim: width of a local descriptor; None = any.
        global_dim: width of a global descriptor; None = any.
        settings: further arguments.

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
