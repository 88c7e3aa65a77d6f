"""Long shortlists in windows (section 3.4; as RankGPT, Sun et al. 2023): good candidates climb."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.registry import suggest
from locore.reranking.ensemble import Ensemble, StandardisedEnsemble
from locore.reranking.reranker import Ranking, Reranker, Shortlist, only_present

ORDERS = {
    "end-to-start": (False,),
    "start-to-end": (True,),
    "end-to-start-and-back": (False, True),
    "start-to-end-and-back": (True, False),
}


@dataclass(frozen=True)
class Windows:
    """Re-ranks lists of any length by a re-ranker of lists of K.

    Attributes:
        reranker: reorders a window.
        size: K.
        stride: number of places that the next window moves by.
        order: in which windows follow each other, one of `ORDERS`.
        ensemble: sorts a window by global and local score together; None = by the re-ranker's order.
    """

    reranker: Reranker
    size: int = 100
    stride: int = 50
    order: str = "end-to-start"
    ensemble: Ensemble | StandardisedEnsemble | None = None

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"Unknown order of windows '{self.order}'{suggest(self.order, ORDERS)}")
        if not 1 <= self.stride <= self.size:
            raise ValueError(f"Windows of {self.size} cannot move by {self.stride}; give a stride of 1 to their size.")

    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Reorder candidates, without scores: those of different windows cannot be compared."""
        embedded = getattr(self.reranker, "embedded", None)  # what every window would do again
        whole = embedded(shortlist) if embedded else shortlist
        batch, count = shortlist.similarities.shape
        places = torch.arange(count, device=shortlist.similarities.device).repeat(batch, 1)
        for start, end in self.passes(count):
            inside = places[:, start:end]
            places[:, start:end] = inside.gather(1, self._sorted(whole.take(inside)))
        return Ranking(places, None)

    def passes(self, count: int) -> list[tuple[int, int]]:
        """Return the windows (start, end) over `count` places as they follow; that of a turn comes once."""
        spans = [span for ahead in ORDERS[self.order] for span in windows(count, self.size, self.stride, ahead)]
        return [span for number, span in enumerate(spans) if number == 0 or span != spans[number - 1]]

    def _sorted(self, window) -> Tensor:
        """Return the places (B, K) in a window, best first."""
        ranking = self.reranker.rerank(window)
        if self.ensemble is None:
            return ranking.order
        if ranking.scores is None:
            raise ValueError(
                "This re-ranker gives an order without scores, so windows cannot be sorted by an ensemble."
            )
        return Ranking.by(only_present(self.ensemble(window.similarities, ranking.scores), window.present)).order


def windows(count: int, size: int, stride: int, ahead: bool) -> list[tuple[int, int]]:
    """Return start and end of each window over `count` places; the last one is shorter if it would reach beyond."""
    if count <= size:
        return [(0, count)]
    steps = range(-(-(count - size) // stride) + 1)
    spans = [(step * stride, min(step * stride + size, count)) for step in steps]
    return spans if ahead else [(count - end, count - start) for start, end in spans]
