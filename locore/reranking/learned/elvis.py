"""ELViS (Suma et al., ICLR 2026): votes of an optimal assignment of local descriptors, under the published names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.learned._binary import inferred, remapping
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.reranker import rerankers

ROUNDS = 10  # of Sinkhorn's iteration
REGULARISATION = 0.1
MANY_VOTES = 100.0  # more than images of 50 local descriptors have


@rerankers.register("elvis", mini={"width": 128}, base={"width": 128})
class ELViS(PairwiseReranker):
    """Each local descriptor of either image votes by the strength of its best assignment.

    Args:
        local_dim: width of a local descriptor.
        width: of the compared descriptors.
        bits: of binarised local descriptors; None = they are not binarised.
    """

    def __init__(self, local_dim: int, width: int = 128, bits: int | None = None):
        super().__init__()
        self.width, self.bits = width, bits
        self.remap_local = remapping(local_dim, width, bits)
        self.dust_bin = nn.Parameter(torch.tensor(1.0))
        self.dust_bin_mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1), nn.Tanh())
        self.f = nn.Sequential(nn.Linear(1, 16), nn.LayerNorm(16, eps=1e-6), nn.GELU(), nn.Linear(16, 1))
        self.g = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, 1))

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        return inferred(tensors) if "dust_bin" in tensors else None

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        return [(self.remap_local[0], descriptors.local)]

    def values(self, local_count: int) -> int:
        return max(2 * local_count * self.width, 4 * (local_count + 1) ** 2)

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the logits (N,) that N pairs match, of which the loss is taken."""
        return self.g(self.votes(query, candidate)[:, None]).squeeze(1)

    def pairs(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the votes (N,) that N pairs are sorted by, negative where the training made g a falling function: then
        they count against a match."""
        none, many = self.g(torch.tensor([[0.0], [MANY_VOTES]]).to(self.dust_bin)).flatten()
        votes = self.votes(query, candidate)
        return votes if many > none else -votes

    def votes(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the sums (N,) of the votes of N pairs, the published score."""
        ours, theirs = (F.normalize(self.remap_local(image.local), dim=-1) for image in (query, candidate))
        real = query.mask[:, :, None] & candidate.mask[:, None]
        alike = (ours @ theirs.mT).masked_fill(~real, -torch.inf)
        of_rows, of_columns = (self.dust_bin_mlp(local).squeeze(2) for local in (ours, theirs))
        assigned = assignment(alike, of_rows, of_columns, self.dust_bin)
        strongest = torch.cat([assigned.amax(2), assigned.amax(1)], dim=1)
        votes = torch.sigmoid(self.f(strongest[..., None]).squeeze(2))
        return (votes * torch.cat([query.mask, candidate.mask], dim=1)).sum(1)


def assignment(alike: Tensor, of_rows: Tensor, of_columns: Tensor, corner: Tensor) -> Tensor:
    """Assign rows to columns by entropy-regularised optimal transport, with a bin for what has no partner.

    Args:
        alike: (N, n, m) similarities, -inf where a side is missing.
        of_rows: (N, n) similarity of each row to the bin.
        of_columns: (N, m) similarity of each column to the bin.
        corner: of both bins.

    Returns:
        (N, n, m), times n + m.
    """
    count, rows, columns = alike.shape
    bottom = torch.cat([of_columns, corner.expand(count, 1)], dim=1)
    scores = torch.cat([torch.cat([alike, of_rows[:, :, None]], dim=2), bottom[:, None]], dim=1) / REGULARISATION
    total = math.log(rows + columns)
    wanted_rows, wanted_columns = (scores.new_full((length + 1,), -total) for length in (rows, columns))
    wanted_rows[-1] += math.log(columns)
    wanted_columns[-1] += math.log(rows)
    u, v = scores.new_zeros(count, rows + 1), scores.new_zeros(count, columns + 1)
    for _ in range(ROUNDS):
        u = wanted_rows - torch.logsumexp(scores + v[:, None], dim=2)
        v = wanted_columns - torch.logsumexp(scores + u[:, :, None], dim=1)
    return torch.exp(scores + u[:, :, None] + v[:, None] + total)[:, :-1, :-1]
