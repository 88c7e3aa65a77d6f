"""The transitivity probe (supplement, Figure C): does a candidate count because of another candidate?

It uses a query, an easy view that overlaps with it, and a hard view that overlaps with the easy one but not with the
query. On a list of these two and of views of other walls, the easy view's local descriptors that show what the hard
view shows are replaced by those of wrong candidates, each by one of another. A re-ranker that reasons from the query
over the easy view to the hard one then scores the hard one lower; one that looks at pairs does not. As a control, as
many descriptors elsewhere in the easy view are replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from locore.datasets.posters import EASY, HIDDEN, LINK, Posters, Transitive, overlaps
from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Reranker, Shortlist
from locore.utils.progress import track

EASY_PLACE, HARD_PLACE = 0, 1  # of the two in `ProbeLists`


@dataclass(frozen=True)
class Triples:
    """Triples that are probed.

    Attributes:
        query: (N,) rows of the queries.
        easy: (N,) rows of the easy gallery views.
        hard: (N,) rows of the hard gallery views.
    """

    query: np.ndarray
    easy: np.ndarray
    hard: np.ndarray

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True)
class Probed:
    """The effect of the replacements on the hard view of each triple, (N,) each; falls in standard deviations of a
    list's scores.

    Attributes:
        gain: fall of its score when the descriptors that the easy view shares with it are replaced: what it owes to the
            link.
        elsewhere: fall when as many other descriptors of the easy view are replaced, which the query may share.
        place: its place before, the easy view not counted.
        places: number of places that it falls in the first case.
        walls: of the triples, the groups of the bootstrap.
    """

    gain: np.ndarray
    elsewhere: np.ndarray
    place: np.ndarray
    places: np.ndarray
    walls: np.ndarray


def triples(queries: Posters, gallery: Posters) -> Triples:
    """Find for each query the easy and the hard view with most in common, if there are any."""
    common, within, shown = overlaps(queries, gallery)
    clear = shown >= HIDDEN
    found = []
    for row, shares in enumerate(common):
        easy = np.flatnonzero((shares >= EASY) & clear)
        hard = np.flatnonzero((gallery.walls == queries.walls[row]) & (shares == 0) & clear)
        if len(easy) and len(hard):
            links = within[np.ix_(easy, hard)]
            best = np.unravel_index(links.argmax(), links.shape)
            if links[best] >= LINK:
                found.append((row, easy[best[0]], hard[best[1]]))
    return Triples(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def have_links(images: Posters, neighbours: np.ndarray) -> np.ndarray:
    """Return (N,) bool, which images have a view on their list (N, K) that shares nothing with them but is linked to
    them.
    """
    common, _, _ = overlaps(images, images)
    own = images.walls[:, None] == images.walls
    answers = Transitive(common, common >= LINK, own, np.ones_like(own))(neighbours)
    return np.array([len(right) > 0 for right in answers.positive])


@dataclass(frozen=True)
class ProbeLists:
    """The lists that are re-ranked: of each triple the easy view, the hard view and the nearest views of other walls.

    Attributes:
        query: (N,) rows of the queries.
        candidates: (N, K) rows of the gallery.
        walls: (N,) of the queries.
        positions: (N, L, 2) of the easy view's descriptors.
        shared: (N, L) bool, descriptors of the easy view in the part that it shares with the hard one.
        elsewhere: (N, L) bool, as many of its other descriptors.
    """

    query: Tensor
    candidates: Tensor
    walls: np.ndarray
    positions: Tensor
    shared: Tensor
    elsewhere: Tensor

    def __len__(self) -> int:
        return len(self.query)


def probe_lists(
    found: Triples, queries: Posters, gallery: Posters, asked: Descriptors, listed: Descriptors, candidates: int
) -> ProbeLists:
    """Build the lists of the triples whose easy view has descriptors both in the shared part and elsewhere.

    Args:
        found: the triples.
        queries: the query views.
        gallery: the gallery views.
        asked: descriptors of the queries.
        listed: descriptors of the gallery.
        candidates: K.

    Raises:
        ValueError: there are none, or K leaves no place for a wrong candidate.
    """
    if candidates < 3:
        raise ValueError(f"Lists of {candidates} leave no place for a wrong candidate; re-rank 3 or more.")
    random = np.random.default_rng(0)
    rows, named, masks = [], [], []
    for query, easy, hard in zip(found.query, found.easy, found.hard, strict=True):
        camera = gallery.camera(easy)
        points = camera.on_wall(listed.position[easy].float().numpy())
        seen, also = camera.sees(points), gallery.camera(hard).sees(points)
        linked, rest = seen & also, seen & ~also  # what stands before the wall is in neither
        count = int(min(linked.sum(), rest.sum()))
        if not count:
            continue
        similarities = listed.global_descriptor.float() @ asked.global_descriptor[query].float()
        similarities[torch.from_numpy(gallery.walls == queries.walls[query])] = -torch.inf
        rows.append(query)
        named.append([easy, hard, *similarities.topk(candidates - 2).indices.tolist()])
        masks.append([_some(places, count, random) for places in (linked, rest)])
    if not rows:
        raise ValueError(
            "No easy view has descriptors both where it is linked and elsewhere, so nothing can be probed."
        )
    shared, elsewhere = torch.from_numpy(np.array(masks)).unbind(1)
    query, views = torch.tensor(rows), torch.tensor(named)
    positions = listed.position[views[:, EASY_PLACE]].float()
    return ProbeLists(query, views, queries.walls[query.numpy()], positions, shared, elsewhere)


def probe(
    reranker: Reranker, lists: ProbeLists, asked: Descriptors, listed: Descriptors, device: torch.device, batch: int
) -> Probed:
    """Measure what the hard views owe to the easy ones.

    Args:
        reranker: one that gives scores.
        lists: of `probe_lists`.
        asked: descriptors of the queries.
        listed: descriptors of the gallery.
        device: of the re-ranker.
        batch: lists at a time.

    Raises:
        ValueError: the re-ranker gives no scores.
    """
    random = np.random.default_rng(0)
    wrong = torch.from_numpy(random.integers(HARD_PLACE + 1, lists.candidates.shape[1], lists.shared.shape))
    falls = []
    for part in track(torch.arange(len(lists)).split(batch), "probing"):
        whole = Shortlist.gather(asked, lists.query[part], listed, lists.candidates[part], device)
        order = whole.similarities.argsort(dim=1, descending=True)  # as it would come from a search
        cases = [whole] + [_replaced(whole, m[part].to(device), wrong[part]) for m in (lists.shared, lists.elsewhere)]
        falls.append(_falls(*(_scores(reranker, case, order) for case in cases)))
    gain, elsewhere, place, places = (torch.cat(each).numpy() for each in zip(*falls, strict=True))
    return Probed(gain, elsewhere, place, places, lists.walls)


def _some(places: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw so many of the places, (L,) bool."""
    chosen = np.zeros(len(places), dtype=bool)
    chosen[random.permutation(np.flatnonzero(places))[:count]] = True
    return chosen


def _scores(reranker: Reranker, shortlist: Shortlist, order: Tensor) -> Tensor:
    """Re-rank in an order (B, K), and return the scores (B, K) of the candidates as they stand on the shortlist."""
    scores = reranker.rerank(shortlist.take(order)).scores
    if scores is None:
        raise ValueError("This re-ranker gives an order without scores, so it cannot be probed.")
    return torch.empty_like(scores).scatter(1, order, scores).cpu()


def _replaced(shortlist: Shortlist, masks: Tensor, wrong: Tensor) -> Shortlist:
    """Replace the easy view's local descriptors where the mask (B, L) is True by those of wrong candidates (B, L)."""
    local = shortlist.candidates.local.clone()
    others = local[torch.arange(len(local))[:, None], wrong, torch.arange(wrong.shape[1])]
    local[:, EASY_PLACE] = torch.where(masks[..., None], others, local[:, EASY_PLACE])
    return replace(shortlist, candidates=replace(shortlist.candidates, local=local))


def _falls(whole: Tensor, linkless: Tensor, damaged: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return from scores (B, K) the hard view's falls, its place, and the places that it falls in the first case."""
    spread = whole.std(dim=1).clamp(min=1e-12)
    falls = [(whole[:, HARD_PLACE] - scores[:, HARD_PLACE]) / spread for scores in (linkless, damaged)]
    places = [(s[:, HARD_PLACE + 1 :] > s[:, HARD_PLACE, None]).sum(dim=1).float() for s in (linkless, whole)]
    return falls[0], falls[1], 1 + places[1], places[0] - places[1]
