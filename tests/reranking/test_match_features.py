"""What tokens are told of a match, against loops; and a head that starts as the search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from locore.reranking import ListwiseReranker, Shortlist, Windows
from locore.reranking.classical.k_reciprocal import KReciprocal
from locore.reranking.classical.superglobal import SuperGlobal
from locore.reranking.match_features import Matches

SMALL = {"width": 32, "depth": 1, "heads": 2}


def lists(batch=2, candidates=5, local_count=6, seed=0, missing=0.0) -> Shortlist:
    """Random lists with missing local descriptors, which hold `missing`, and one list that is shorter."""
    torch.manual_seed(seed)
    drawn = Shortlist.random(batch, candidates, local_count, 8, 16)
    mask = torch.rand(drawn.candidates.mask.shape) > 0.2
    mask[..., :2] = True
    local = torch.where(mask[..., None], drawn.candidates.local + 0.3, missing)
    present = torch.ones(batch, candidates, dtype=torch.bool)
    present[0, -1] = False
    query_mask = torch.ones(batch, local_count, dtype=torch.bool)
    query_mask[1, -1] = False
    query = replace(drawn.query, mask=query_mask)
    return replace(drawn, query=query, candidates=replace(drawn.candidates, local=local, mask=mask), present=present)


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def test_numbers_of_local_descriptors_in_loops():
    given = lists()
    found = Matches(given).of_locals(among_candidates=True)
    for row in range(2):
        there = [k for k in range(5) if given.present[row, k]]
        query = given.query.local[row][given.query.mask[row]].numpy()
        images = {k: given.candidates.local[row, k][given.candidates.mask[row, k]].numpy() for k in there}
        mean = np.concatenate([query, *images.values()]).mean(0)
        query, images = (
            x / np.linalg.norm(x, axis=-1, keepdims=True)
            if isinstance(x, np.ndarray)
            else {k: v / np.linalg.norm(v, axis=-1, keepdims=True) for k, v in x.items()}
            for x in (query - mean, {k: v - mean for k, v in images.items()})
        )
        expected = []
        for k in there:
            alike = images[k] @ query.T
            for m, similarities in enumerate(alike):
                second, best = np.sort(similarities)[-2:]
                chosen = alike[:, similarities.argmax()].argmax() == m
                others = [(images[k][m] @ images[j].T).max() for j in there if j != k]
                expected.append([best, best - second, similarities.mean(), chosen, max(others), np.mean(others)])
        expected = np.apply_along_axis(standardised, 0, np.array(expected, dtype=float))
        real = (given.candidates.mask & given.present[..., None])[row]
        np.testing.assert_allclose(found[row][real].numpy(), expected, atol=2e-4)
        assert not found[row][~real].any()


def test_numbers_of_images_are_standardised_and_the_first_is_the_search():
    given = lists()
    found = Matches(given).of_images(among_candidates=True)
    there = given.present[0]
    np.testing.assert_allclose(found[0, there, 0], standardised(given.similarities[0, there].numpy()), atol=1e-4)
    torch.testing.assert_close(found[0, there].mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1].std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    assert not found[0, ~there].any()
    for number, method in ((4, SuperGlobal()), (5, KReciprocal())):
        scores = method.rerank(given).scores[0, there].numpy()
        np.testing.assert_allclose(found[0, there, number], standardised(scores), atol=1e-4)


def test_the_descriptors_that_match_best_are_kept():
    given = lists(candidates=3)
    matches = Matches(given)
    places = matches.most_alike(2)
    for row in range(2):
        for k in range(3):
            best = matches.similarities[row, k].amax(1)
            assert set(places[row, 1 + k].tolist()) == set(best.topk(2).indices.tolist())
    assert places[1, 0].max() < 5  # the query's missing one is not among them
    assert (places.diff(dim=2) > 0).all()
    few, every = (matches.of_locals(False, some) for some in (places[:, 1:], None))
    rows, images = torch.arange(2)[:, None, None], torch.arange(3)[None, :, None]
    torch.testing.assert_close(few, every[rows, images, places[:, 1:]])


@pytest.mark.parametrize("matching", ["none", "query", "list"])
def test_an_untrained_re_ranker_with_a_residual_is_the_search(matching):
    given = replace(lists(), similarities=torch.rand(2, 5))
    torch.manual_seed(1)
    model = ListwiseReranker(
        "query_attention", 8, 16, 99, settings=SMALL, matching=matching, residual=20.0, kept_locals=4
    )
    ranking = model.rerank(given)
    expected = given.similarities.masked_fill(~given.present, -1).argsort(dim=1, descending=True)
    assert ranking.order.tolist() == expected.tolist()
    # The difference of two scores is half that of their log-odds, the residual's 20 times that of the similarities.
    scores, alike = ranking.scores[1], given.similarities[1]
    torch.testing.assert_close(scores[0] - scores[1], 10 * (alike[0] - alike[1]), atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_head_the_scale_and_then_the_encoder():
    given = lists(seed=3)
    torch.manual_seed(2)
    model = ListwiseReranker("mamba", 8, 16, 99, settings=SMALL, matching="query", residual=20.0)
    labels = torch.tensor([[1, 0, 0, 1, -100], [0, 1, 0, 0, 1]])
    model.loss(model(given), labels).backward()
    assert float(model.head.weight.grad.abs().sum()) > 0 and float(model.log_residual.grad.abs()) > 0
    with torch.no_grad():
        model.head.weight -= model.head.weight.grad
    model.loss(model(given), labels).backward()
    assert float(model.embedding.match_of_local.weight.grad.abs().sum()) > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_is_missing_may_be_anything():
    one, other = Matches(lists()), Matches(lists(missing=torch.nan))
    for found, expected in (
        (other.of_locals(True), one.of_locals(True)),
        (other.of_images(True), one.of_images(True)),
        (other.most_alike(3), one.most_alike(3)),
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("matching", ["none", "query", "list"])
def test_a_candidate_that_is_not_present_changes_nothing(matching):
    given = lists()
    torch.manual_seed(1)
    settings = {"matching": matching, "residual": 20.0, "kept_locals": 4, "positions": "none"}
    model = ListwiseReranker("list_attention", 8, 16, 99, settings=SMALL, **settings)
    torch.nn.init.normal_(model.head.weight)
    local, similarities = given.candidates.local.clone(), given.similarities.clone()
    local[0, -1], similarities[0, -1] = 100 * torch.randn(6, 8), 55.0
    changed = replace(given, similarities=similarities, candidates=replace(given.candidates, local=local))
    torch.testing.assert_close(model.rerank(changed).scores, model.rerank(given).scores, atol=1e-5, rtol=1e-5)


def test_a_window_over_the_whole_list_is_the_list():
    given = replace(lists(), present=None)
    given = replace(given, candidates=replace(given.candidates, mask=torch.ones(2, 5, 6, dtype=torch.bool),
                                              local=F.normalize(torch.randn(2, 5, 6, 8), dim=-1)))  # fmt: skip
    torch.manual_seed(1)
    model = ListwiseReranker(
        "mamba", 8, 16, 99, settings=SMALL, matching="query", residual=20.0, kept_locals=3, positions="none"
    )
    torch.nn.init.normal_(model.head.weight)
    assert Windows(model, 5, 2).rerank(given).order.tolist() == model.rerank(given).order.tolist()


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="must be a number above 0"):
        ListwiseReranker("mamba", 8, 16, 99, settings=SMALL, residual=0.0)
    with pytest.raises(ValueError, match="did you mean 'query'"):
        ListwiseReranker("mamba", 8, 16, 99, settings=SMALL, matching="quary")
