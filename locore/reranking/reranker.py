"""The contract of a re-ranker: a `Shortlist` in, a `Ranking` out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import Registry
from locore.descriptors.table import Descriptors, DescriptorTable

rerankers: Registry[Reranker] = Registry("re-ranker", "locore.reranking", "locore.rerankers")
VALUES = 2**22  # values of a layer's tokens at a time in evaluation
IGNORED = -100  # label of what takes no part in a loss


@dataclass(frozen=True)
class Shortlist:
    """A batch of queries with their K candidates.

    Attributes:
        similarities: (B, K) of the global descriptors.
        query: descriptors with leading dimensions (B,).
        candidates: with leading dimensions (B, K).
        present: (B, K) bool, False = this list is shorter and has no such candidate; None = all are there. (`rwkv`
            decays by the length of the batch's longest list, so there its scores move a little.)
    """

    similarities: Tensor
    query: Descriptors
    candidates: Descriptors
    present: Tensor | None = None

    @classmethod
    def gather(
        cls,
        queries: DescriptorTable,
        rows: Tensor,
        gallery: DescriptorTable,
        candidates: Tensor,
        device: torch.device | str = "cpu",
    ) -> Shortlist:
        """Read a batch from descriptor tables: rows (B,) of the queries, candidates (B, K) of the gallery."""
        query, listed = queries[rows].to(device), gallery[candidates].to(device)
        return cls(torch.einsum("bd,bkd->bk", query.global_descriptor, listed.global_descriptor), query, listed)

    def to(self, device: torch.device) -> Shortlist:
        """The same on a device."""
        present = None if self.present is None else self.present.to(device)
        return Shortlist(self.similarities.to(device), self.query.to(device), self.candidates.to(device), present)

    def take(self, places: Tensor) -> Shortlist:
        """Some of the candidates: (B, M) places on the shortlist."""
        rows = torch.arange(len(places), device=places.device)[:, None]
        present = None if self.present is None else self.present[rows, places]
        return Shortlist(self.similarities[rows, places], self.query, self.candidates[rows, places], present)

    @classmethod
    def random(
        cls,
        batch: int,
        candidates: int,
        local_count: int,
        local_dim: int,
        global_dim: int,
        device: torch.device | str = "cpu",
    ) -> Shortlist:
        """Random unit descriptors, all locals real: to try a re-ranker on, or to time it."""

        def descriptors(*lead: int) -> Descriptors:
            return Descriptors(
                global_descriptor=F.normalize(torch.randn(*lead, global_dim), dim=-1),
                local=F.normalize(torch.randn(*lead, local_count, local_dim), dim=-1),
                position=torch.rand(*lead, local_count, 2),
                scale=torch.zeros(*lead, local_count, dtype=torch.long),
                mask=torch.ones(*lead, local_count, dtype=torch.bool),
                weight=torch.ones(*lead, local_count),
            )

        everyone = torch.arange(batch * candidates).view(batch, candidates)
        return cls.gather(descriptors(batch), torch.arange(batch), descriptors(batch * candidates), everyone, device)


@dataclass(frozen=True)
class Ranking:
    """A new order of each shortlist.

    Attributes:
        order: (B, K) long, places on the shortlist, best first.
        scores: (B, K) of the candidates as they stand on the shortlist, or None where a method's are not comparable.
    """

    order: Tensor
    scores: Tensor | None

    @classmethod
    def by(cls, scores: Tensor) -> Ranking:
        """Best score first; equal scores keep the shortlist's order.

        Raises:
            ValueError: a score is not a number.
        """
        if scores.isnan().any():
            raise ValueError("A re-ranker's scores are not numbers; its weights or the descriptors overflow.")
        return cls(scores.argsort(dim=1, descending=True, stable=True), scores)


def at_least(reranker: object, **least: float) -> None:
    """Refuse settings of a re-ranker that are below what is given, or not finite; where that is whole, they are too."""
    for name, bound in least.items():
        value = getattr(reranker, name)
        whole = isinstance(bound, int)
        if not bound <= value < math.inf or (whole and not isinstance(value, int)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{type(reranker).__name__}.{name} = {value!r} must be {kind}, at least {bound:g}.")


def describe_mismatch(reranker: object, described: Descriptors) -> str | None:
    """Describe a width mismatch between a re-ranker and descriptors; None if they fit."""
    for name, width in (
        ("local_dim", described.local.shape[-1]),
        ("global_dim", described.global_descriptor.shape[-1]),
    ):
        wanted = getattr(reranker, "spec", {}).get(name) or width
        if wanted != width:
            return f"descriptors of {name} {wanted}, these have {width}"
    return None


def only_present(scores: Tensor, present: Tensor | None) -> Tensor:
    """Scores (B, K), -inf for candidates that are not there."""
    return scores if present is None else scores.masked_fill(~present, -torch.inf)


def among_candidates(shortlist: Shortlist) -> Tensor:
    """(B, K, K) similarities of a list's candidates by global descriptors; -inf to those that are not there."""
    alike = shortlist.candidates.global_descriptor @ shortlist.candidates.global_descriptor.mT
    return alike if shortlist.present is None else alike.masked_fill(~shortlist.present[:, None], -torch.inf)


def lists_at_once(reranker: object, tokens: float, widths: tuple[int, int]) -> int:
    """Return how many lists a re-ranker reads at a time in a bounded memory.

    Args:
        reranker: one with weights has a `width`, of its tokens; another reads the descriptors as they are.
        tokens: of a list.
        widths: of a global and of a local descriptor.
    """
    width = getattr(reranker, "width", None) or sum(widths)
    return max(1, int(VALUES / (tokens * width)))


class Reranker(Protocol):
    """Anything that reorders a shortlist."""

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder each query's candidates."""
        ...
