"""What the match of an image with the query says, as numbers beside each of its descriptors.

Descriptors are compared after the mean local descriptor of the list has been subtracted: cells of a feature map have
much in common, and what is common to all images of a list tells none from another.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from locore.reranking.classical.k_reciprocal import KReciprocal
from locore.reranking.classical.superglobal import SuperGlobal
from locore.reranking.reranker import Shortlist

# Numbers of a local descriptor and of an image, by what they are compared with.
COUNTS = {"none": (0, 0), "query": (4, 4), "list": (6, 6)}
SPREAD = 1e-4  # standard deviation of a number over a list at least


class Matches:
    """Similarities of the local descriptors of a list.

    Attributes:
        similarities: (B, K, L, L) of each candidate's local descriptors to the query's; -1 where either is missing.
    """

    def __init__(self, shortlist: Shortlist):
        present = shortlist.present
        if present is None:
            present = torch.ones_like(shortlist.similarities, dtype=torch.bool)
        real = torch.cat([shortlist.query.mask[:, None], shortlist.candidates.mask & present[..., None]], dim=1)
        local = torch.cat([shortlist.query.local[:, None], shortlist.candidates.local], dim=1).float()
        # What is missing may be anything, NaN too.
        local = torch.where(real[..., None], local, 0.0)
        mean = local.sum((1, 2), keepdim=True) / real.sum((1, 2)).clamp(min=1)[:, None, None, None]
        local = F.normalize(local - mean, dim=-1)
        self._shortlist, self._global, self._present = shortlist, shortlist.similarities.float(), present
        self._local, self._query_real, self._real = local[:, 1:], real[:, 0], real[:, 1:]
        both = self._real[..., None] & self._query_real[:, None, None, :]
        found = torch.einsum("bkmd,bld->bkml", self._local, local[:, 0])
        self.similarities = found.masked_fill(~both, -1.0)

    def of_locals(self, among_candidates: bool, places: Tensor | None = None) -> Tensor:
        """Return (B, K, L, F) numbers of each candidate's local descriptors, standardised over the list; 0 if missing.

        They are: the largest similarity to one of the query's, what it is above the second largest, the mean, whether
        the two choose each other; and, among candidates, the largest similarity to one of another candidate's, and the
        mean of these over the other candidates.

        Args:
            among_candidates: compare candidates with each other, too.
            places: (B, K, kept) of the local descriptors that are asked for; None = all.
        """
        best, second = self._two_best()
        counted = self._query_real.sum(1).clamp(min=1)[:, None, None]
        mean = torch.where(self.similarities > -1, self.similarities, 0.0).sum(3) / counted
        numbers = torch.stack([best, best - second, mean, self._mutual()], dim=-1)
        numbers = _standardised(numbers, self._real, dims=(1, 2))
        if places is not None:
            numbers = _taken(numbers, places)
        if not among_candidates:
            return numbers
        local, real = self._local, self._real
        if places is not None:
            local, real = _taken(local, places), real.gather(2, places)
        return torch.cat([numbers, _standardised(self._to_others(local, real), real, dims=(1, 2))], dim=-1)

    def of_images(self, among_candidates: bool) -> Tensor:
        """Return (B, K, F) numbers of each candidate, standardised over the list.

        They are: the global similarity, the mean largest similarity of its local descriptors and of the query's, the
        number of pairs that choose each other; and, among candidates, what SuperGlobal and k-reciprocal re-ranking
        make of the global descriptors of the list.
        """
        best, _ = self._two_best()
        real, query = self._real.float(), self._query_real[:, None].float()
        numbers = [
            self._global,
            (best * real).sum(2) / real.sum(2).clamp(min=1),
            (self.similarities.amax(2) * query).sum(2) / query.sum(2).clamp(min=1),
            (self._mutual() * real).sum(2),
        ]
        if among_candidates:
            for method in (SuperGlobal(), KReciprocal()):
                scores = method.rerank(self._shortlist).scores
                assert scores is not None
                numbers.append(scores.to(self._global).masked_fill(~self._present, 0.0))
        return _standardised(torch.stack(numbers, dim=-1), self._present, dims=(1,))

    def most_alike(self, count: int) -> Tensor:
        """Return (B, 1 + K, count) places of the query's local descriptors that are most like a candidate's on
        average, and of each candidate's that are most like one of the query's, in ascending order.
        """
        of_query = self.similarities.amax(2).masked_fill(~self._present[..., None], 0.0).mean(1)
        of_query = of_query.masked_fill(~self._query_real, -torch.inf)
        rated = torch.cat([of_query[:, None], self.similarities.amax(3)], dim=1)
        return rated.topk(count, dim=2).indices.sort(dim=2).values

    def _two_best(self) -> tuple[Tensor, Tensor]:
        found = self.similarities.topk(min(2, self.similarities.shape[3]), dim=3).values
        return found[..., 0], found[..., -1]

    def _mutual(self) -> Tensor:
        """Return (B, K, L) 1 where a local descriptor and its most similar one of the query choose each other."""
        place = self.similarities.argmax(3, keepdim=True)
        chosen = (self.similarities == self.similarities.amax(2, keepdim=True)) & (self.similarities > -1)
        return chosen.gather(3, place)[..., 0].float()

    def _to_others(self, local: Tensor, real: Tensor) -> Tensor:
        """Return two numbers (B, K, L, 2) of local descriptors, one candidate at a time, so that memory grows as K.

        Args:
            local: (B, K, L, D), unit vectors.
            real: (B, K, L) bool.
        """
        largest, mean = [], []
        for place in range(local.shape[1]):
            to_all = torch.einsum("bmd,bknd->bmkn", local[:, place], local)
            others = self._present.clone()
            others[:, place] = False
            nearest = to_all.masked_fill(~real[:, None], -1.0).amax(3).masked_fill(~others[:, None], -1.0)
            largest.append(nearest.amax(2))
            mean.append((nearest * others[:, None]).sum(2) / others.sum(1, keepdim=True).clamp(min=1))
        return torch.stack([torch.stack(largest, dim=1), torch.stack(mean, dim=1)], dim=-1)


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Select places (B, K, kept) of the third dimension of values (B, K, L, …)."""
    return values.gather(2, repeat(places, "b k l -> b k l d", d=values.shape[-1]))


def _standardised(numbers: Tensor, real: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return numbers (B, …, F) with mean 0 and standard deviation 1 over the real ones of a list; 0 elsewhere."""
    weight = real[..., None].float()
    count = weight.sum(dims, keepdim=True).clamp(min=1)
    centred = (numbers - (numbers * weight).sum(dims, keepdim=True) / count) * weight
    return centred / (centred.square().sum(dims, keepdim=True) / count).sqrt().clamp(min=SPREAD)
