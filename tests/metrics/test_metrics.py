"""Metrics against pytorch-metric-learning's calculator and against a slow loop."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from locore.datasets import Relevance
from locore.metrics.bootstrap import interval
from locore.metrics.retrieval import relevance
from locore.metrics.suites import MetricLearning
from locore.retrieval import SORTED, search

KS = (1, 5, 10)


@pytest.fixture
def retrieval():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 5)
    points = random.normal(size=(12, 16))[labels] + 1.2 * random.normal(size=(60, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    own = np.arange(60)
    neighbours = search(points, points, 59, own)
    answers = Relevance.from_labels(labels, labels, own)
    positives = np.array([len(p) for p in answers.positive])
    right = relevance(neighbours.indices, answers.positive)
    return points, labels, neighbours, MetricLearning(KS)(right, np.zeros_like(right), positives)


def test_agrees_with_pytorch_metric_learning(retrieval):
    points, labels, _, metrics = retrieval
    theirs = AccuracyCalculator(k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        torch.from_numpy(points), torch.from_numpy(labels)
    )
    assert metrics["R@1"].mean() == pytest.approx(theirs["precision_at_1"])
    assert metrics["mAP@R"].mean() == pytest.approx(theirs["mean_average_precision_at_r"])
    assert metrics["R-precision"].mean() == pytest.approx(theirs["r_precision"])


def test_the_published_map_counts_the_query_itself(retrieval):
    _, labels, neighbours, _ = retrieval
    answers = Relevance.from_labels(labels, labels, np.arange(len(labels)))
    right = relevance(neighbours.indices, answers.positive)
    positives = np.array([len(p) for p in answers.positive])
    found = MetricLearning(KS, as_published=True)(right, np.zeros_like(right), positives)["mAP@R+1"]
    for row, count, value in zip(right, positives, found, strict=True):
        precisions = [row[: place + 1].mean() for place in range(count + 1) if row[place]]
        assert value == pytest.approx(sum(precisions) / (count + 1))


def test_recall_agrees_with_a_slow_loop(retrieval):
    points, labels, _, metrics = retrieval
    for k in KS:
        hits = []
        for i, point in enumerate(points):
            order = [j for j in np.argsort(-(points @ point), kind="stable") if j != i]
            hits.append(any(labels[j] == labels[i] for j in order[:k]))
        assert metrics[f"R@{k}"].mean() == pytest.approx(np.mean(hits))


def test_the_query_is_left_out_and_moved_images_come_last():
    points = np.eye(6, dtype=np.float32) + 0.1
    own = np.arange(6)
    moved = [np.array([(i + 1) % 6]) for i in own]
    neighbours = search(points, points, 5, own, moved)
    assert not (neighbours.indices == own[:, None]).any()
    assert (neighbours.indices[:, -1] == (own + 1) % 6).all()
    assert neighbours.demoted[:, -1].all() and not neighbours.demoted[:, :-1].any()


def test_a_ranking_of_everything_is_the_one_that_faiss_gives():
    random = np.random.default_rng(0)
    queries, gallery = (random.normal(size=(n, 8)).astype(np.float32) for n in (3, SORTED + 900))
    deep, short = search(queries, gallery, SORTED + 500), search(queries, gallery, 50)
    np.testing.assert_allclose(deep.similarities[:, :50], short.similarities, atol=1e-5)
    assert (deep.indices[:, :50] == short.indices).all()
    assert (np.diff(deep.similarities) <= 0).all() and len(set(deep.indices[0])) == SORTED + 500


def test_interval_of_a_constant_is_that_constant_and_groups_widen_it():
    groups = np.repeat(np.arange(20), 10)
    assert interval(np.full(200, 0.3), groups) == pytest.approx((0.3, 0.3))
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    narrow, wide = interval(values, np.arange(200)), interval(values, groups)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_an_interval_over_seeds_is_that_of_a_sum_of_two_variances():
    """Runs that deviate by normal noise of a known size: the variances of both means add up."""
    random = np.random.default_rng(0)
    of_classes, of_seeds, groups = random.normal(size=400), random.normal(size=12), np.arange(400)
    values = of_classes + of_seeds[:, None]
    low, high = interval(values, groups)
    expected = 2 * 1.96 * np.sqrt(of_classes.var() / 400 + of_seeds.var(ddof=1) / 12)
    assert high - low == pytest.approx(expected, rel=0.1)
    assert interval(values[:1], groups) == interval(values[0], groups)


def test_an_interval_of_a_difference_draws_the_same_classes_and_other_seeds():
    random = np.random.default_rng(0)
    one, groups = random.normal(size=(2, 300)), np.repeat(np.arange(30), 10)
    same = interval(one[0], groups, one[0])
    assert same == (0, 0) and interval(one[0], groups, one[1]) == pytest.approx(interval(one[0] - one[1], groups))
    low, high = interval(one, groups, one)
    assert low < 0 < high  # a training that is repeated with other seeds comes out differently
