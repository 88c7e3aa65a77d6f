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
from locore.utils import distributed
from locore.utils.memory import values_at_once

rerankers: Registry[Reranker] = Registry("re-ranker", "locore.reranking", "locore.rerankers")
IGNORED = -100  # label of what takes no part in a loss


@dataclass(frozen=True)
class Shortlist:
    """A batch of queries with their K candidates.

    Attributes:
        similarities: (B, K) of the global descriptors.
        query: descriptors with leading dimensions (B,).
        candidates: descriptors with leading dimensions (B, K).
        present: (B, K) bool, False = this list is shorter and has no such candidate; None = all are present. (`rwkv`
            decays by the length of the longest list in the batch, so its scores change a little there.)
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
        """Read a batch from descriptor tables.

        Args:
            queries: table of the queries.
            rows: (B,) of the queries.
            gallery: table of the gallery.
            candidates: (B, K) rows of the gallery.
            device: of the batch.
        """
        query, listed = queries[rows].to(device), gallery[candidates].to(device)
        return cls(torch.einsum("bd,bkd->bk", query.global_descriptor, listed.global_descriptor), query, listed)

    def pin_memory(self) -> Shortlist:
        """Copy to pinned memory, see `Descriptors.pin_memory`."""
        present = None if self.present is None else self.present.pin_memory()
        images = self.query.pin_memory(), self.candidates.pin_memory()
        return Shortlist(self.similarities.pin_memory(), *images, present)

    def to(self, device: torch.device) -> Shortlist:
        """Move to a device."""
        present = None if self.present is None else self.present.to(device, non_blocking=True)
        similarities = self.similarities.to(device, non_blocking=True)
        return Shortlist(similarities, self.query.to(device), self.candidates.to(device), present)

    def take(self, places: Tensor) -> Shortlist:
        """Select candidates by their places (B, M) on the shortlist."""
        rows = torch.arange(len(places), device=places.device)[:, None]
        present = None if self.present is None else self.present[rows, places]
        return Shortlist(self.similarities[rows, places], self.query, self.candidates[rows, places], present)

    def lists(self, chosen: Tensor) -> Shortlist:
        """Select some of the lists, by their numbers or by (B,) bool."""
        present = None if self.present is None else self.present[chosen]
        return Shortlist(self.similarities[chosen], self.query[chosen], self.candidates[chosen], present)

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
        """Draw random unit descriptors without missing ones, to try or to time a re-ranker.

        Args:
            batch: B.
            candidates: K.
            local_count: L.
            local_dim: width of a local descriptor.
            global_dim: width of a global descriptor.
            device: of the batch.
        """

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
        scores: (B, K) of the candidates as they stand on the shortlist; None if they cannot be compared.
    """

    order: Tensor
    scores: Tensor | None

    @classmethod
    def by(cls, scores: Tensor) -> Ranking:
        """Sort by score, best first; equal scores keep the order of the shortlist.

        Raises:
            ValueError: a score is not a number.
        """
        if scores.isnan().any():
            raise ValueError("The scores of a re-ranker are not numbers; its weights or the descriptors overflow.")
        return cls(scores.argsort(dim=1, descending=True, stable=True), scores)


def at_least(reranker: object, **least: float) -> None:
    """Check that settings of a re-ranker are finite and not below a bound; whole numbers if the bound is one.

    Raises:
        ValueError: a setting is out of range.
    """
    for name, bound in least.items():
        value = getattr(reranker, name)
        whole = isinstance(bound, int)
        if not bound <= value < math.inf or (whole and not isinstance(value, int)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{type(reranker).__name__}.{name} = {value!r} must be {kind}, at least {bound:g}.")


def describe_mismatch(reranker: object, described: Descriptors) -> str | None:
    """Describe a width mismatch between a re-ranker and descriptors; None if they fit.

    Local descriptors of a re-ranker that makes bits of them may be these bits already.
    """
    reranker = getattr(reranker, "reranker", reranker)  # of one with the search
    for name, width in (
        ("local_dim", described.local.shape[-1]),
        ("global_dim", described.global_descriptor.shape[-1]),
    ):
        wanted = getattr(reranker, "spec", {}).get(name) or width
        if width not in (wanted, getattr(reranker, "bits", None) if name == "local_dim" else None):
            return f"descriptors of {name} {wanted}, these have {width}"
    return None


def check_widths(reranker: object, shortlist: Shortlist) -> None:
    """Check that a re-ranker reads the descriptors of a shortlist.

    Raises:
        ValueError: it was made for other widths.
    """
    if mismatch := describe_mismatch(reranker, shortlist.candidates):
        raise ValueError(f"The re-ranker reads {mismatch}; give the descriptors that it was trained on.")


def only_present(scores: Tensor, present: Tensor | None) -> Tensor:
    """Set the scores (B, K) of candidates that are not present to -inf."""
    return scores if present is None else scores.masked_fill(~present, -torch.inf)


def among_candidates(shortlist: Shortlist) -> Tensor:
    """Return (B, K, K) global similarities of a list's candidates; -inf to those not present."""
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
    return max(1, int(values_at_once(distributed.device()) / (tokens * width)))


class Reranker(Protocol):
    """Anything that reorders a shortlist."""

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder the candidates of each query."""
        ...
