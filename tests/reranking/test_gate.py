"""The gate: lists whose first candidate matches stay as they are, and are not read."""

import pytest
import torch

from experiments._config import read_experiment
from locore.reranking import Gate, Gated, Ranking, Shortlist

FIRST = torch.tensor([0.9, 0.8, 0.3, 0.2])  # similarity of the first candidate, the right one where it is high


class Backwards:
    def __init__(self):
        self.read = 0

    def rerank(self, shortlist):
        self.read += len(shortlist.similarities)
        return Ranking.by(torch.arange(shortlist.similarities.shape[1]).float().expand_as(shortlist.similarities))


def share_of_right(order):
    wanted = torch.where(FIRST > 0.5, 0, order.shape[1] - 1)  # the last candidate where the first one matches weakly
    return float((order[:, 0] == wanted).double().mean())


def test_the_threshold_separates_lists_that_gain_from_those_that_lose():
    similarities = torch.stack([FIRST, FIRST - 0.1, FIRST - 0.1], dim=1)
    backwards, same = torch.tensor([2, 1, 0]).expand(4, 3), torch.arange(3).expand(4, 3)
    gate = Gate.fit(similarities, backwards, share_of_right)
    assert 0.3 < gate.threshold <= 0.8 and gate.opens(similarities).tolist() == [False, False, True, True]
    assert share_of_right(gate.order(similarities, backwards)) == 1
    assert not Gate.fit(similarities, same, share_of_right).opens(similarities).any()  # it would change nothing
    every = Gate.fit(similarities, backwards, lambda order: float((order[:, 0] == 2).double().mean()))
    assert every.opens(similarities).all()


def test_only_open_lists_are_read():
    torch.manual_seed(0)
    shortlist, inner = Shortlist.random(6, 4, 3, 8, 8), Backwards()
    gate = Gate(float(shortlist.similarities[:, 0].median()) + 1e-6)
    expected = gate.order(shortlist.similarities, Backwards().rerank(shortlist).order)
    ranking = Gated(inner, gate).rerank(shortlist)
    assert torch.equal(ranking.order, expected) and ranking.scores is None
    assert inner.read == int(gate.opens(shortlist.similarities).sum()) == 3
    closed = Gated(inner, Gate(-2.0)).rerank(shortlist)
    assert torch.equal(closed.order, torch.arange(4).expand(6, 4)) and inner.read == 3


def test_a_wrong_gate_is_refused():
    with pytest.raises(ValueError, match=r"Reranking.gate = 'choose' must be a similarity, 'chosen', or None"):
        read_experiment(["gin/peers/chamfer.gin"], ["Reranking.gate = 'choose'"], 0)
