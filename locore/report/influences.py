"""Which tokens moved the scores of a list's first places, as a page shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from locore.evaluation import Search
from locore.progress import track
from locore.reranking.influence import influence
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.reranker import Shortlist

OTHERS = 4  # other images of the list that are named

Shown = dict[str, Any]


def influences(
    model: ListwiseReranker,
    searched: Search,
    order: Tensor,
    rows: list[int],
    shown: int,
    count: int,
    device: torch.device,
    batch: int,
) -> dict[int, list[Shown]]:
    """Of some lists, what moved each of the first scores.

    The model reads the first places of the re-ranked list, in their new order and in one pass.

    Args:
        order: (Q, K) of all lists. rows: which of them. shown: how many scores are explained. count: places that are
            read. batch: lists at a time.

    Returns:
        for each row and place: "query" and "candidate", their tokens as [x %, y %, influence]; "images", the query (0),
        the candidate's place and those of the others with most influence, each with that of all its tokens. Influences
        are in percent of the largest.
    """
    head = searched.neighbours.first(order.shape[1])
    found: dict[int, list[Shown]] = {}
    for part in track([rows[i : i + batch] for i in range(0, len(rows), batch)], "explaining scores"):
        places = order[part, :count].long()
        listed = torch.from_numpy(head.indices[part]).gather(1, places)
        asked = torch.from_numpy(searched.rows[part])
        lists = Shortlist.gather(searched.queries, asked, searched.gallery, listed, device)
        behind = torch.from_numpy(head.behind[part]).gather(1, places)
        lists = replace(lists, present=~behind.to(device)) if behind.any() else lists
        for row in part:
            found[row] = []
        for place in range(min(shown, listed.shape[1])):
            values = influence(model, lists, place).cpu()
            for number, row in enumerate(part):
                positions = [lists.query.position[number].cpu(), lists.candidates.position[number, place].cpu()]
                found[row].append(_shown(values[number], positions, place, model.embedding.global_token))
    return found


def _shown(values: Tensor, positions: list[Tensor], place: int, global_token: bool) -> Shown:
    """Of (1 + K, S) influences on the score at a place."""
    own = [values[image, int(global_token) : -1] for image in (0, place + 1)]
    largest = max(float(each.abs().max()) for each in own) or 1.0
    maps = [
        torch.cat([100 * at.float(), 100 * each[:, None] / largest], dim=1).round().int().tolist()
        for at, each in zip(positions, own, strict=True)
    ]
    sums = values.sum(dim=1)
    strongest = float(sums.abs().max()) or 1.0
    others = [i for i in sums.abs().argsort(descending=True).tolist() if i not in (0, place + 1)][:OTHERS]
    images = [[i, round(100 * float(sums[i]) / strongest)] for i in (0, place + 1, *others)]
    return {"query": maps[0], "candidate": maps[1], "images": images}
