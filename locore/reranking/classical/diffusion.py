"""Diffusion on the shortlist (Iscen et al. 2017, section 4): similarity flows along a graph of mutual neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backbones.registry import suggest
from locore.reranking.classical._matching import chamfer, chamfer_among
from locore.reranking.reranker import Ranking, Shortlist, among_candidates, at_least, only_present, rerankers

DESCRIPTORS = ("global", "local")


@rerankers.register("diffusion")
@dataclass(frozen=True)
class Diffusion:
    """A regularised random walk from the query, solved exactly.

    Attributes:
        neighbours: k; edges lead to candidates that are among each other's k nearest.
        gamma: power of similarities.
        alpha: share of the walk that goes on.
        query_neighbours: number of candidates that the walk starts from.
        descriptors: "global", or "local" for chamfer similarities, which tell overlapping views of one place from
            others.
    """

    search_weight: ClassVar[float] = 0.9

    neighbours: int = 10
    gamma: float = 3.0
    alpha: float = 0.9
    query_neighbours: int = 10
    descriptors: str = "global"

    def __post_init__(self):
        if self.descriptors not in DESCRIPTORS:
            unknown = self.descriptors
            raise ValueError(f"Unknown diffusion.descriptors '{unknown}'{suggest(unknown, DESCRIPTORS)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"diffusion.alpha = {self.alpha} must be in (0, 1), or the walk does not end.")
        at_least(self, neighbours=1, query_neighbours=1, gamma=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by f, where (I - α S) f = y, S the normalised affinity, y the query's similarities."""
        alike, similarities = self._similarities(shortlist)
        count = alike.shape[1]
        own = torch.eye(count, dtype=torch.bool, device=alike.device)
        alike = alike.masked_fill(own, -torch.inf)
        near = alike.topk(min(self.neighbours, count - 1), dim=2).indices
        listed = torch.zeros_like(alike, dtype=torch.bool).scatter(2, near, True)
        edges = listed & listed.mT & (alike > 0)
        affinity = torch.where(edges, alike.clamp(min=0) ** self.gamma, 0.0).double()
        scale = affinity.sum(dim=2).clamp(min=1e-12).rsqrt()
        walk = scale[:, :, None] * affinity * scale[:, None, :]
        nearest, places = similarities.topk(min(self.query_neighbours, count), dim=1)
        start = torch.zeros_like(similarities).scatter(1, places, nearest.clamp(min=0) ** self.gamma).double()
        flow = torch.linalg.solve(torch.eye(count, dtype=walk.dtype, device=walk.device) - self.alpha * walk, start)
        # What the walk does not reach keeps the order that it had, behind.
        reached = flow > 1e-12
        scores = torch.where(reached, flow, similarities.double().clamp(min=-1) * 1e-12 - 1e-11)
        return Ranking.by(only_present(scores, shortlist.present))

    def _similarities(self, shortlist: Shortlist) -> tuple[Tensor, Tensor]:
        """Return (B, K, K) similarities of candidates and (B, K) to the query; -inf for those not present."""
        if self.descriptors == "local":
            found = chamfer(shortlist.query, shortlist.candidates)
            return chamfer_among(shortlist), only_present(found, shortlist.present)
        found = torch.einsum("bd,bkd->bk", shortlist.query.global_descriptor, shortlist.candidates.global_descriptor)
        return among_candidates(shortlist), only_present(found, shortlist.present)
