"""Sliding windows against a loop in plain Python, and against what one pass over everything gives."""

from dataclasses import replace

import pytest
import torch
from published_weights import by_name, local_width

from locore.reranking import Ensemble, ListwiseReranker, Ranking, Shortlist, Windows, pairwise
from locore.reranking.reranker import rerankers
from locore.reranking.windows import ORDERS, windows


class Known:
    """Scores a candidate by the first number of its global descriptor, whatever else is on the list."""

    def rerank(self, shortlist):
        scores = shortlist.candidates.global_descriptor[..., 0]
        if shortlist.present is not None:
            scores = scores.masked_fill(~shortlist.present, float("-inf"))
        return Ranking.by(scores)


class Unscored(Known):
    def rerank(self, shortlist):
        return Ranking(super().rerank(shortlist).order, None)


def shortlist(candidates, batch=2, seed=0):
    torch.manual_seed(seed)
    return Shortlist.random(batch, candidates, 3, 16, 24)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (400, [(300, 400), (250, 350), (200, 300), (150, 250), (100, 200), (50, 150), (0, 100)]),
        (370, [(270, 370), (220, 320), (170, 270), (120, 220), (70, 170), (20, 120), (0, 70)]),
        (100, [(0, 100)]),
        (7, [(0, 7)]),
    ],
)
def test_windows_as_published_and_a_shorter_last_one(count, expected):
    assert windows(count, 100, 50, ahead=False) == expected
    assert windows(count, 100, 50, ahead=True) == [(count - end, count - start) for start, end in expected]


def test_the_window_of_a_turn_is_read_once():
    """13 passes for 400 candidates in windows of 100 that move by 50, as published."""
    there, back = windows(400, 100, 50, ahead=False), windows(400, 100, 50, ahead=True)
    found = Windows(Known(), 100, 50, "end-to-start-and-back").passes(400)
    assert found == [*there, *back[1:]] and len(found) == 13
    assert Windows(Known(), 100, 50, "start-to-end-and-back").passes(80) == [(0, 80)]


@pytest.mark.parametrize("way", ORDERS)
@pytest.mark.parametrize(("count", "size", "stride"), [(40, 10, 5), (37, 10, 4), (12, 10, 10), (10, 10, 5), (3, 10, 5)])
def test_agrees_with_a_plain_loop(way, count, size, stride):
    lists = shortlist(count)
    order = Windows(Known(), size, stride, way).rerank(lists).order
    for scores, found in zip(lists.candidates.global_descriptor[..., 0].tolist(), order.tolist(), strict=True):
        expected = list(range(count))
        for ahead in {"e": [False], "s": [True]}[way[0]] + [way[0] == "e"] * way.endswith("back"):
            start = 0 if ahead else count - size
            while True:
                low, high = max(start, 0), min(start + size, count)
                expected[low:high] = sorted(expected[low:high], key=lambda place: -scores[place])
                if (high == count) if ahead else (low == 0):
                    break
                start += stride if ahead else -stride
        assert found == expected


def test_the_best_climb_to_the_top_from_anywhere():
    """What two windows share is carried on: after a pass from the end the first (size - stride) are the best of all."""
    lists = shortlist(60)
    order = Windows(Known(), 20, 10).rerank(lists).order
    best = lists.candidates.global_descriptor[..., 0].argsort(dim=1, descending=True)
    assert torch.equal(order[:, :10], best[:, :10])


@pytest.mark.parametrize("backbone", ["query_attention", "mamba"])
def test_one_window_is_the_list_and_embedding_once_changes_nothing(backbone):
    torch.manual_seed(0)
    model = ListwiseReranker(
        backbone, 16, 24, settings={"width": 32, "depth": 1, "heads": 2}, positions="segment", max_positions=64
    )
    lists = replace(shortlist(12), present=torch.arange(12) < torch.tensor([[12], [9]]))
    assert torch.equal(Windows(model, 12, 6).rerank(lists).order, model.rerank(lists).order)

    class Again:  # without `embedded`
        def rerank(self, part):
            return model.rerank(part)

    once, again = (Windows(reranker, 5, 2).rerank(lists).order for reranker in (model, Again()))
    assert torch.equal(once, again)
    assert set(once[1, -3:].tolist()) == {9, 10, 11}  # those that are not there stay last


@by_name(rerankers.available())
def test_every_re_ranker_works_in_windows(name):
    learned = pairwise.is_learned(name)
    torch.manual_seed(0)
    model = pairwise.create(name, "mini", 16, 24, {}) if learned else rerankers.create(name)
    lists = Shortlist.random(2, 12, 16, 16 if learned else local_width(name, 16), 24)
    whole, order = model.rerank(lists).order, Windows(model, 6, 3).rerank(lists).order
    assert torch.equal(Windows(model, 12, 6).rerank(lists).order, whole)
    assert torch.equal(order.sort(dim=1).values, torch.arange(12).expand(2, -1))
    if learned:  # who scores a pair by itself finds the best of all, half a window of them
        assert torch.equal(order[:, :3], whole[:, :3])


def test_windows_sort_by_the_ensemble():
    lists = shortlist(30)
    lists = replace(lists, present=torch.arange(30) < torch.tensor([[30], [25]]))
    ensemble = Ensemble(0.7, 0.4)
    combined = ensemble(lists.similarities, lists.candidates.global_descriptor[..., 0]).masked_fill(
        ~lists.present, -torch.inf
    )
    order = Windows(Known(), 30, 10, ensemble=ensemble).rerank(lists).order
    assert torch.equal(order, combined.argsort(dim=1, descending=True, stable=True))
    with pytest.raises(ValueError, match="windows cannot be sorted by an ensemble"):
        Windows(Unscored(), 10, 5, ensemble=ensemble).rerank(lists)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "end-to-strat"}, "did you mean 'end-to-start'"),
        ({"stride": 0}, "cannot move by 0"),
        ({"size": 10, "stride": 11}, "give a stride of 1 to their size"),
    ],
)
def test_wrong_settings_are_reported(settings, words):
    with pytest.raises(ValueError, match=words):
        Windows(Known(), **settings)
