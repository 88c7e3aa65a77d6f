"""Losses over the list, against pytorch-metric-learning, loops, closed forms and what has to hold for all."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import SmoothAPLoss
from torch.nn import functional as F

from locore.reranking.reranker import IGNORED
from locore.training.lists import Sampling
from locore.training.losses import LOSSES, smooth_ap_loss, softmax_loss, weighted_ranknet_loss

every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def lists():
    torch.manual_seed(0)
    labels = (torch.rand(5, 9) < 0.4).long()
    labels[0, :2], labels[1] = torch.tensor([0, 1]), 0  # one list has nothing right
    return torch.randn(5, 9, dtype=torch.float64), labels


def test_smooth_ap_is_pytorch_metric_learnings():
    torch.manual_seed(0)
    found = F.normalize(torch.randn(16, 8), dim=1)
    classes = torch.arange(4).repeat_interleave(4)  # theirs needs as many classes as there are images in each
    theirs = SmoothAPLoss(temperature=0.1)(found, classes)
    scores = (found @ found.T) / 0.1
    ours = smooth_ap_loss(scores, (classes[:, None] == classes).long())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_softmax_and_ranknet_are_their_definitions():
    scores, labels = lists()
    softmax, ranknet = [], []
    for s, y in zip(scores.tolist(), labels.tolist(), strict=True):
        right = [i for i, label in enumerate(y) if label == 1]
        if not right:
            continue
        total = sum(math.exp(x) for x in s)
        softmax.append(-sum(math.log(math.exp(s[i]) / total) for i in right) / len(right))
        place = {i: n for n, i in enumerate(sorted(range(len(s)), key=lambda i: -s[i]), start=1)}
        pairs = [(1 / (place[i] + place[j]), s[j] - s[i]) for i in right for j in range(len(s)) if y[j] == 0]
        ranknet.append(sum(w * math.log1p(math.exp(d)) for w, d in pairs) / sum(w for w, _ in pairs))
    assert softmax_loss(scores, labels).item() == pytest.approx(sum(softmax) / len(softmax))
    assert weighted_ranknet_loss(scores, labels).item() == pytest.approx(sum(ranknet) / len(ranknet))


@every
def test_a_perfect_order_costs_least_and_only_the_order_of_candidates_counts(loss):
    scores, labels = lists()
    perfect = 20 * labels.double()
    assert loss(perfect, labels) < loss(scores, labels) < loss(-perfect, labels)
    turn = torch.randperm(9)
    torch.testing.assert_close(loss(scores[:, turn], labels[:, turn]), loss(scores, labels))
    torch.testing.assert_close(loss(scores + 3, labels), loss(scores, labels))


@every
def test_what_is_not_counted_changes_nothing_and_gradients_are_right(loss):
    scores, labels = lists()
    more = torch.cat([scores, 5 * torch.randn(5, 3, dtype=torch.float64)], dim=1)
    ignored = F.pad(labels, (0, 3), value=IGNORED)
    torch.testing.assert_close(loss(more, ignored), loss(scores, labels))
    assert loss(scores, torch.zeros_like(labels)) == 0
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), scores.requires_grad_())


def test_settings_that_do_not_go_together_are_reported():
    with pytest.raises(ValueError, match="did you mean 'softmax'"):
        Sampling(loss="softmx")
    with pytest.raises(ValueError, match="label_smoothing"):
        Sampling(loss="softmax", label_smoothing=0.1)
