"""Which tokens of the list moved a candidate's score: gradient × input, which any sequence encoder has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.reranking.listwise import Embedded, ListwiseReranker
from locore.reranking.reranker import Shortlist


def influence(model: ListwiseReranker, shortlist: Shortlist, candidate: int) -> Tensor:
    """(B, 1 + K, S) influence of every token on the score of the candidate at a place of each list.

    Of a token x its gradient times x less the mean of the list's real tokens (Shrikumar et al. 2017): what the score
    would lose, as far as it is linear, if the token were an average one. The query's block comes first; a block is the
    global token, the locals and SEP.
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
