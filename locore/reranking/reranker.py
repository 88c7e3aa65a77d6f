"""The contract of a re-ranker: a `Shortlist` in, a `Ranking` out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import Registry
from locore.descriptors.store import Descriptors, DescriptorTable

rerankers = Registry("re-ranker", "locore.reranking", "locore.rerankers")
IGNORED = -100  # label of what takes no part in a loss


@dataclass(frozen=True)
class Shortlist:
    """A batch of queries with their K candidates.

    Attributes:
        similarities: (B, K) of the global descriptors.
        query: descriptors with leading dimensions (B,). candidates: with leading dimensions (B, K).
        present: (B, K) bool, False = this list is shorter and has no such candidate; None = all are there.
            (`rwkv` decays by the length of the batch's longest list, so there its scores move a little.)
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
        return cls(torch.einsum("bd,bkd->bk", query.global_, listed.global_), query, listed)

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
        locals_: int,
        local_dim: int,
        global_dim: int,
        device: torch.device | str = "cpu",
    ) -> Shortlist:
        """Random unit descriptors, all locals real: to try a re-ranker on, or to time it."""

        def descriptors(*lead: int) -> Descriptors:
            return Descriptors(
                global_=F.normalize(torch.randn(*lead, global_dim), dim=-1),
                local=F.normalize(torch.randn(*lead, locals_, local_dim), dim=-1),
                position=torch.rand(*lead, locals_, 2),
                scale=torch.zeros(*lead, locals_, dtype=torch.long),
                mask=torch.ones(*lead, locals_, dtype=torch.bool),
                weight=torch.ones(*lead, locals_),
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


def reads_other(reranker: object, described: Descriptors) -> str | None:
    """What a re-ranker reads and these descriptors are not, in words; None = they fit."""
    for name, width in (("local_dim", described.local.shape[-1]), ("global_dim", described.global_.shape[-1])):
        wanted = getattr(reranker, "spec", {}).get(name) or width
        if wanted != width:
            return f"descriptors of {name} {wanted}, these have {width}"
    return None


def only_present(scores: Tensor, present: Tensor | None) -> Tensor:
    """Scores (B, K), -inf for candidates that are not there."""
    return scores if present is None else scores.masked_fill(~present, -torch.inf)


def among_candidates(shortlist: Shortlist) -> Tensor:
    """(B, K, K) similarities of a list's candidates by global descriptors; -inf to those that are not there."""
    alike = shortlist.candidates.global_ @ shortlist.candidates.global_.mT
    return alike if shortlist.present is None else alike.masked_fill(~shortlist.present[:, None], -torch.inf)


class Reranker(Protocol):
    """Anything that reorders a shortlist."""

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder each query's candidates."""
        ...
