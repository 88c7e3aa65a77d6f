"""Which tokens moved a candidate's score: gradient × input, which works for any sequence encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from locore.descriptors.table import Descriptors, DescriptorTable
from locore.reranking.listwise import Embedded, ListwiseReranker
from locore.reranking.reranker import Shortlist
from locore.utils.progress import track

OTHERS = 4  # other images of the list that are named
VALUES = 2**20  # values of a layer's tokens at a time, of which gradients keep many

Explained = dict[str, Any]


def influence(model: ListwiseReranker, shortlist: Shortlist, candidate: int) -> Tensor:
    """Return the influence (B, 1 + K, S) of every token on the score of one candidate of each list.

    Of a token x its gradient times the difference of x to the mean of the list's real tokens (Shrikumar et al. 2017):
    what the score would lose, as far as it is linear, if the token were an average one. The query's block comes first;
    a block is the global token, the local descriptors and SEP.

    Args:
        model: any list-wise re-ranker.
        shortlist: the lists.
        candidate: its place on each list.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        embedded = model.embedding.blocks(shortlist)
    with torch.enable_grad():
        tokens = embedded.blocks.requires_grad_()
        whole = Embedded(tokens, embedded.real, embedded.similarities, embedded.present)
        score = model.scores(model(whole))[:, candidate].sum()
        (gradient,) = torch.autograd.grad(score, tokens)
    model.train(training)
    real = embedded.real
    if embedded.present is not None:
        real = real & F.pad(embedded.present, (1, 0), value=True)[:, :, None]
    blocks, counted = tokens.detach(), real[..., None]
    average = (blocks * counted).sum(dim=(1, 2), keepdim=True) / counted.sum(dim=(1, 2), keepdim=True)
    return (gradient * (blocks - average)).sum(dim=-1).masked_fill(~real, 0.0)


def explain(
    model: ListwiseReranker,
    queries: DescriptorTable,
    gallery: DescriptorTable,
    lists: Mapping[str, np.ndarray],
    chosen: list[int],
    first: int,
    count: int,
    device: torch.device,
) -> dict[int, list[Explained]]:
    """Explain the scores of the first places of some re-ranked lists.

    The model reads the head of a list in its new order, in one pass.

    Args:
        model: any list-wise re-ranker.
        queries: descriptors.
        gallery: descriptors.
        lists: as a run writes them: rows (Q,), indices and order (Q, K).
        chosen: indices of the lists that are explained.
        first: number of places that are explained.
        count: number of places that are read.
        device: of the model.

    Returns:
        Of each list and place: "query" and "candidate", their tokens as [x %, y %, influence]; "images", the query (0),
            the candidate's place and those of the others with the most influence, each with the influence of all its
            tokens. Influences are in percent of the largest.
    """
    order = lists["order"][chosen, :count].astype(np.int64)
    listed, junk = (torch.from_numpy(np.take_along_axis(lists[n][chosen], order, 1)) for n in ("indices", "junk"))
    rows = torch.from_numpy(lists["rows"][chosen])
    block = model.embedding.layout(gallery[listed[:1, :1].long()].local.shape[-2], 1).block
    batch = max(1, VALUES // ((1 + listed.shape[1]) * block * model.width))
    found: dict[int, list[Explained]] = {row: [] for row in chosen}
    for part in track(torch.arange(len(chosen)).split(batch), "explaining scores"):
        head = Shortlist.gather(queries, rows[part], gallery, listed[part].long(), device)
        if junk[part].any():  # of the first protocol: where a list is short, junk stands behind it
            head = replace(head, present=~junk[part].to(device))
        position = torch.cat([head.query.position[:, None], head.candidates.position], dim=1)
        if (places := model.embedding.kept_places(head)) is not None:
            position = position.gather(2, repeat(places, "b i l -> b i l xy", xy=2))
        for place in range(min(first, listed.shape[1])):
            values = influence(model, head, place).cpu()
            for number, row in enumerate(part.tolist()):
                positions = [position[number, image].cpu() for image in (0, place + 1)]
                found[chosen[row]].append(_explained(values[number], positions, place, model.embedding.global_token))
    return found


def _explained(values: Tensor, positions: list[Tensor], place: int, global_token: bool) -> Explained:
    """Summarise the influences (1 + K, S) on the score at a place."""
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


def explain_one(
    model: object, query: Descriptors, photos: Descriptors, order: Tensor, first: int, size: int | None
) -> list[Explained]:
    """Explain the first places of one re-ranked list of photos; nothing if the re-ranker is not list-wise.

    Args:
        model: any re-ranker.
        query: descriptors of one image, (1, …).
        photos: descriptors of all photos.
        order: (K,) indices of the re-ranked photos, best first.
        first: how many places are explained.
        size: K of the model's passes; None = any.
    """
    if not isinstance(model, ListwiseReranker) or not first:
        return []
    count = len(order)
    lists = {
        "rows": np.zeros(1, dtype=np.int64),
        "indices": order.numpy()[None],
        "order": np.arange(count)[None],
        "junk": np.zeros((1, count), dtype=bool),
    }
    device = next(model.parameters()).device
    return explain(model, query, photos, lists, [0], first, size or count, device)[0]
