"""Synthetic lists: what is in them, and that matching helps in them."""

import numpy as np
import torch

from locore.metrics.retrieval import map_at_r
from locore.reranking.reranker import rerankers
from locore.training import synthetic
from locore.training.synthetic import draw_lists


def drawn(number, count=8):
    return draw_lists(count, torch.Generator().manual_seed(number))


def quality(scores, labels):
    right = labels.gather(1, scores.argsort(1, descending=True)).numpy()
    return map_at_r(right, labels.sum(1).numpy())


def test_lists_have_the_sizes_that_are_promised_and_follow_from_the_generator():
    for number in range(6):
        lists, labels = drawn(number)
        assert 8 <= labels.shape[1] <= 32 and 9 <= lists.query.local.shape[1] <= 49
        assert (labels.sum(1) >= 1).all() and (labels.sum(1) <= labels.shape[1] // 2).all()
        for descriptors in (lists.query, lists.candidates):
            for vectors in (descriptors.local, descriptors.global_descriptor):
                torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
        cosines = torch.einsum("bd,bkd->bk", lists.query.global_descriptor, lists.candidates.global_descriptor)
        torch.testing.assert_close(lists.similarities, cosines)
        again, same = drawn(number)
        assert torch.equal(again.candidates.local, lists.candidates.local) and torch.equal(same, labels)
    assert len({drawn(number)[1].shape for number in range(6)}) > 3


def test_two_views_of_an_object_differ_and_share_parts(monkeypatch):
    """Without noise, styles and occlusion, every cell of a view is a mixture of parts of its own object alone."""
    monkeypatch.setattr(synthetic, "_between", lambda low, high, shape, random: torch.full(shape, low))
    monkeypatch.setattr(synthetic, "_occluded", lambda count, images, side, random: torch.tensor(False))
    lists, labels = drawn(1)
    alike = torch.einsum("bld,bkmd->bklm", lists.query.local, lists.candidates.local).amax((2, 3))
    assert alike[labels == 1].mean() > 2 * alike[labels == 0].mean()
    assert alike[labels == 1].max() < 0.999  # noise


def test_local_descriptors_tell_more_than_the_search_and_the_search_more_than_chance():
    found = {"chamfer": [], "global": [], "chance": []}
    for number in range(12):
        lists, labels = drawn(number)
        found["chamfer"].append(quality(rerankers.create("chamfer").rerank(lists).scores, labels))
        found["global"].append(quality(lists.similarities, labels))
        random = torch.rand(labels.shape, generator=torch.Generator().manual_seed(number))
        found["chance"].append(quality(random, labels))
    means = {name: np.concatenate(values).mean() for name, values in found.items()}
    assert means["chance"] + 0.15 < means["global"] and means["global"] + 0.05 < means["chamfer"] < 0.8
