"""Re-rankers without training: published outputs, slow references, closed forms, and what holds for all of them."""

from dataclasses import replace
from itertools import product
from math import comb, log10

import cv2
import numpy as np
import pytest
import torch
from golden_files import FOLDER
from published_weights import by_name, local_width
from safetensors.torch import load_file
from torch.nn import functional as F

from locore.descriptors import Descriptors
from locore.reranking import Ranking, Shortlist
from locore.reranking.cascade import Cascade
from locore.reranking.classical._matching import chamfer_among, local_similarities, mutual
from locore.reranking.classical.chamfer import Chamfer
from locore.reranking.classical.database_augmentation import DatabaseAugmentation
from locore.reranking.classical.diffusion import Diffusion
from locore.reranking.classical.geometric import Geometric, degenerate, expected_by_chance
from locore.reranking.classical.k_reciprocal import KReciprocal
from locore.reranking.classical.mutual_neighbours import MutualNeighbours
from locore.reranking.classical.query_expansion import QueryExpansion
from locore.reranking.classical.superglobal import SuperGlobal
from locore.reranking.pairwise import without_weights
from locore.reranking.reranker import rerankers


def shortlist(batch=2, candidates=12, local_count=6, local_dim=8, seed=0) -> Shortlist:
    """Candidates that are more alike the nearer they are to the query, so that every method has something to find."""
    torch.manual_seed(seed)
    drawn = Shortlist.random(batch, candidates, local_count, local_dim, 16)
    pull = torch.linspace(1.5, 0, candidates)[None, :, None]
    global_matrix = F.normalize(
        drawn.candidates.global_descriptor + pull * drawn.query.global_descriptor[:, None], dim=-1
    )
    local = F.normalize(drawn.candidates.local + pull[..., None] * drawn.query.local[:, None], dim=-1)
    position = drawn.query.position[:, None] + 0.02 * torch.rand_like(drawn.candidates.position)
    found = replace(drawn.candidates, global_descriptor=global_matrix, local=local, position=position)
    return Shortlist(torch.einsum("bd,bkd->bk", drawn.query.global_descriptor, global_matrix), drawn.query, found)


def globals_only(query: torch.Tensor, candidates: torch.Tensor) -> Shortlist:
    """(B, D) and (B, K, D)."""

    def described(rows):
        lead = rows.shape[:-1]
        nothing = torch.zeros(*lead, 1)
        return Descriptors(rows, nothing[..., None], torch.zeros(*lead, 1, 2), nothing.long(), nothing == 0, nothing)

    return Shortlist(torch.einsum("bd,bkd->bk", query, candidates), described(query), described(candidates))


every = by_name(without_weights())


@every
def test_the_order_of_the_candidates_does_not_matter(name):
    lists, method = shortlist(local_dim=local_width(name, 8)), rerankers.create(name)
    turn = torch.stack([torch.randperm(12) for _ in range(2)])
    as_is, turned = method.rerank(lists), method.rerank(lists.take(turn))
    torch.testing.assert_close(turned.scores, as_is.scores.gather(1, turn), atol=1e-5, rtol=1e-5)
    assert as_is.scores.isfinite().all() and (as_is.scores.std(dim=1) > 0).all()


@every
def test_candidates_that_are_not_there_change_nothing_and_come_last(name):
    lists, method = shortlist(local_dim=local_width(name, 8)), rerankers.create(name)
    short = lists.take(torch.arange(8).repeat(2, 1))
    present = torch.arange(12).repeat(2, 1) < 8
    padded = method.rerank(replace(lists, present=present))
    torch.testing.assert_close(padded.scores[:, :8], method.rerank(short).scores, atol=1e-5, rtol=1e-5)
    assert (padded.scores[:, 8:] == -torch.inf).all() and (padded.order[:, 8:] >= 8).all()


@every
def test_lists_of_a_batch_do_not_touch_and_short_ones_pass(name):
    lists, method = shortlist(local_dim=local_width(name, 8)), rerankers.create(name)
    alone = Shortlist(lists.similarities[1:], lists.query[1:], lists.candidates[1:])
    torch.testing.assert_close(method.rerank(lists).scores[1:], method.rerank(alone).scores, atol=1e-5, rtol=1e-5)
    assert method.rerank(lists.take(torch.tensor([[3], [2]]))).order.tolist() == [[0], [0]]


def test_superglobal_as_published():
    golden = load_file(FOLDER / "superglobal.io.safetensors")
    ranks = golden["ranks"].long().T  # (Q, N)
    lists = globals_only(golden["queries"], golden["gallery"][ranks[:, :40]])
    ranking = SuperGlobal().rerank(lists)
    assert torch.equal(ranks[:, :40].gather(1, ranking.order), golden["reranked"].long().T[:, :40])
    # Its first half is published too: similarities to refined candidates, here with all else left out.
    first = torch.einsum("qd,qkd->qk", golden["queries"], golden["augmented"])
    torch.testing.assert_close(first, golden["scores_augmented"], atol=1e-5, rtol=0)
    best = golden["augmented"][torch.arange(6)[:, None], first.topk(10, dim=1).indices].amax(1)
    expected = (first + torch.einsum("qd,qkd->qk", best, golden["augmented"])) / 2
    torch.testing.assert_close(ranking.scores, expected, atol=1e-5, rtol=0)


def test_query_expansion_in_closed_form():
    lists = shortlist(batch=1)
    query, rows = lists.query.global_descriptor[0], lists.candidates.global_descriptor[0]
    nearest = sorted(range(12), key=lambda k: -float(query @ rows[k]))[:3]
    for alpha in (0.0, 3.0):
        expanded = query + sum(float(query @ rows[k]) ** alpha * rows[k] for k in nearest)
        found = QueryExpansion(neighbours=3, alpha=alpha).rerank(lists).scores[0]
        torch.testing.assert_close(found, rows @ F.normalize(expanded, dim=0))
    augmented = []
    for k in range(12):
        near = sorted(range(12), key=lambda j: -float(rows[k] @ rows[j]))[:4]  # itself among them, with weight 1
        augmented.append(F.normalize(sum(float(rows[k] @ rows[j]) ** 2 * rows[j] for j in near), dim=0))
    found = DatabaseAugmentation(neighbours=3, alpha=2.0).rerank(lists).scores[0]
    torch.testing.assert_close(found, torch.stack(augmented) @ query)


def test_diffusion_is_where_the_walk_ends():
    lists = shortlist(batch=1, candidates=20)
    rows, similarities = lists.candidates.global_descriptor[0].double(), lists.similarities[0].double()
    alike = (rows @ rows.T).fill_diagonal_(-1)
    near = [set(alike[k].topk(5).indices.tolist()) for k in range(20)]
    affinity = torch.zeros(20, 20, dtype=torch.double)
    for i in range(20):
        for j in near[i]:
            if i in near[j] and alike[i, j] > 0:
                affinity[i, j] = alike[i, j] ** 3
    scale = affinity.sum(1).clamp(min=1e-12) ** -0.5
    walk = scale[:, None] * affinity * scale
    start = torch.zeros(20, dtype=torch.double)
    first = similarities.topk(4).indices
    start[first] = similarities[first].clamp(min=0) ** 3
    flow = torch.zeros_like(start)
    for _ in range(500):
        flow = 0.9 * walk @ flow + start
    found = Diffusion(neighbours=5, query_neighbours=4).rerank(lists).scores[0]
    reached = flow > 1e-9
    assert int(reached.sum()) > 3
    torch.testing.assert_close(found[reached], flow[reached], atol=1e-6, rtol=1e-5)
    assert found[~reached].numel() == 0 or found[~reached].max() < found[reached].min()


def slow_reciprocal(rows: np.ndarray, k1: int, k2: int, share: float) -> np.ndarray:
    """Zhong et al. 2017 in sets and loops; row 0 asks. -> final distances of the others."""
    count = len(rows)
    distance = 2 - 2 * rows @ rows.T
    distance = distance / distance.max(axis=1, keepdims=True)
    ranks = [sorted(range(count), key=lambda j, i=i: distance[i, j]) for i in range(count)]

    def mutual_of(i, k):
        return {j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1]}

    vectors = np.zeros((count, count))
    for i in range(count):
        expanded = set(mutual_of(i, k1))
        for j in mutual_of(i, k1):
            half = mutual_of(j, round(k1 / 2))
            if len(half & mutual_of(i, k1)) > 2 / 3 * len(half):
                expanded |= half
        for j in expanded:
            vectors[i, j] = np.exp(-distance[i, j])
        vectors[i] /= vectors[i].sum()
    averaged = np.array([vectors[ranks[i][:k2]].mean(axis=0) for i in range(count)])
    final = []
    for j in range(1, count):
        shared, all_ = np.minimum(averaged[0], averaged[j]).sum(), np.maximum(averaged[0], averaged[j]).sum()
        final.append((1 - share) * (1 - shared / all_) + share * distance[0, j])
    return np.array(final)


def test_k_reciprocal_is_its_slow_reference():
    lists = shortlist(candidates=30)
    found = KReciprocal(k1=8, k2=3).rerank(lists).scores
    for row in range(2):
        rows = (
            torch.cat([lists.query.global_descriptor[row : row + 1], lists.candidates.global_descriptor[row]])
            .double()
            .numpy()
        )
        np.testing.assert_allclose(-found[row].numpy(), slow_reciprocal(rows, 8, 3, 0.3), atol=1e-6)


def test_matching_in_loops():
    lists = shortlist(batch=1, candidates=5)
    mask = torch.tensor([True, True, False, True, True, True])
    lists = replace(lists, query=replace(lists.query, mask=mask[None]))
    query, rows = lists.query.local[0][mask], lists.candidates.local[0]
    for k in range(5):
        alike = (query @ rows[k].T).numpy()
        np.testing.assert_allclose(Chamfer().rerank(lists).scores[0, k], alike.max(1).mean(), atol=1e-5)
        pairs = [(i, j) for i in range(5) for j in range(6) if alike[i].argmax() == j and alike[:, j].argmax() == i]
        total = sum(alike[i, j] for i, j in pairs if alike[i, j] >= 0)
        np.testing.assert_allclose(MutualNeighbours().rerank(lists).scores[0, k], total, atol=1e-5)
    assert not mutual(local_similarities(lists.query, lists.candidates))[0, :, 2].any()


def matched(*moved: np.ndarray) -> Shortlist:
    """A query and candidates whose n local descriptors match the query's in order, at the given places (n, 2)."""
    count = len(moved[0])
    local, places = torch.eye(count), np.random.default_rng(0).uniform(0, 1, (count, 2)).astype(np.float32)
    drawn = Shortlist.random(1, len(moved), count, count, 8)
    query = replace(drawn.query, local=local[None], position=torch.from_numpy(places)[None])
    position = torch.from_numpy(np.stack(moved).astype(np.float32))[None]
    candidates = replace(drawn.candidates, local=local.expand(1, len(moved), -1, -1), position=position)
    return Shortlist(torch.linspace(0.9, 0.1, len(moved))[None], query, candidates)


@pytest.mark.parametrize("transformation", ["homography", "affine"])
def test_candidates_move_up_by_matches_that_one_transformation_explains(transformation):
    """Forty matches of which 25 follow a known map: the last of three candidates; two have none."""
    random = np.random.default_rng(1)
    places = matched(np.zeros((40, 2))).query.position[0].numpy()
    moved = cv2.transform(places[None], cv2.getRotationMatrix2D((0.5, 0.5), 20, 0.8))[0]
    moved[25:] = random.uniform(0, 1, (15, 2))
    method = Geometric(transformation, tolerance=0.01)
    lists = matched(random.uniform(0, 1, (40, 2)), random.uniform(0, 1, (40, 2)), moved)
    assert 25 <= method._inliers(places.astype(float), moved.astype(float)) <= 27
    ranking = method.rerank(lists)
    assert ranking.order[0].tolist() == [2, 0, 1]  # the others as they were
    assert ranking.scores[0, 2] > 10 and float(ranking.scores[0, :2].max()) < 1e-5
    with pytest.raises(ValueError, match="did you mean 'affine'"):
        Geometric("afine")


@pytest.mark.parametrize("matrix", [[[-1, 0, 1], [0, 1, 0]], [[8, 0, 0], [0, 8, 0]], [[0.1, 0, 0], [0, 0.1, 0]]])
def test_mirrored_and_extreme_transformations_do_not_count(matrix):
    places = matched(np.zeros((40, 2))).query.position[0].numpy()
    moved = cv2.transform(places[None], np.array(matrix, dtype=float))[0]
    assert Geometric("affine", tolerance=0.01).rerank(matched(moved)).scores[0, 0] < 1e-5
    assert degenerate(np.array(matrix, dtype=float))
    assert not degenerate(cv2.getRotationMatrix2D((0.5, 0.5), 180, 3.0))


def test_candidates_that_are_the_query_in_half_precision_have_scores():
    lists = Shortlist.random(1, 2, 4, 12, 8)
    query = lists.query.global_descriptor * 1.001  # longer than 1, as rounding makes some
    same = replace(lists.candidates, global_descriptor=query[:, None].expand(1, 2, 8))
    lists = replace(lists, query=replace(lists.query, global_descriptor=query), candidates=same)
    assert KReciprocal().rerank(lists).scores.isfinite().all()


def test_random_matches_are_no_more_than_chance():
    random = np.random.default_rng(2)
    lists = matched(*random.uniform(0, 1, (200, 30, 2)))
    assert (Geometric().rerank(lists).scores > 1e-5).float().mean() < 0.05
    grid = np.stack(np.meshgrid(*[np.arange(7) / 7 + 1 / 14] * 2), axis=-1).reshape(-1, 2)
    lists = matched(*(random.permutation(grid)[:30] for _ in range(200)))
    assert (Geometric().rerank(lists).scores > 1e-5).float().mean() < 0.05


@pytest.mark.parametrize(("inliers", "matches", "fitted_to", "chance"), [(9, 20, 4, 0.02), (40, 41, 3, 0.4)])
def test_what_chance_gives_is_the_formula(inliers, matches, fitted_to, chance):
    expected = (matches - fitted_to) * comb(matches, inliers) * comb(inliers, fitted_to)
    expected *= chance ** (inliers - fitted_to)
    assert expected_by_chance(inliers, matches, fitted_to, chance) == pytest.approx(log10(expected))


def test_an_ambiguous_match_fails_the_ratio_test():
    lists = matched(np.zeros((6, 2)))
    local = torch.eye(6)
    local[1] = F.normalize(0.5 * local[0] + local[1], dim=0)  # 0.46 away from its match, 1.41 from the second best
    candidates = replace(lists.candidates, local=local[None, None])
    query, candidate = lists.query[0], candidates[0, 0]
    assert len(Geometric()._matches(query, candidate)) == 6
    assert Geometric(ratio=0.3)._matches(query, candidate)[:, 0].tolist() == [0, 2, 3, 4, 5]


def test_chamfer_among_candidates_is_its_definition():
    lists = shortlist(batch=2, candidates=5, local_count=4)
    mask = torch.ones(2, 5, 4, dtype=torch.bool)
    mask[0, 1, 2:] = mask[1, 4, :1] = False
    present = torch.tensor([[True] * 5, [True] * 4 + [False]])
    lists = replace(lists, candidates=replace(lists.candidates, mask=mask), present=present)
    found, local = chamfer_among(lists), F.normalize(lists.candidates.local, dim=-1)
    for row, one, other in product(range(2), range(5), range(5)):
        alike = local[row, one][mask[row, one]] @ local[row, other][mask[row, other]].T
        expected = (alike.max(1).values.mean() + alike.max(0).values.mean()) / 2
        torch.testing.assert_close(
            found[row, one, other], expected if present[row, other] else -torch.tensor(torch.inf)
        )


def test_diffusion_by_a_single_local_descriptor_is_that_by_the_global_one():
    lists = shortlist(local_count=1)
    query = replace(lists.query, local=lists.query.global_descriptor[:, None])
    candidates = replace(lists.candidates, local=lists.candidates.global_descriptor[:, :, None])
    lists = replace(lists, query=query, candidates=candidates)
    both = [Diffusion(neighbours=4, descriptors=d).rerank(lists).scores for d in ("global", "local")]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-5)


def test_a_cascade_reorders_the_head_of_what_came_before():
    class By:
        def __init__(self, scores):
            self.scores = scores

        def rerank(self, lists):
            return Ranking.by(self.scores.gather(1, lists.similarities.long()))

    lists = globals_only(torch.ones(1, 1), torch.ones(1, 6, 1))
    lists = replace(lists, similarities=torch.arange(6.0)[None])  # each candidate's own number
    first, second = By(torch.tensor([[1.0, 5, 3, 4, 0, 2]])), By(torch.tensor([[0.0, 1, 9, 2, 8, 7]]))
    assert first.rerank(lists).order.tolist() == [[1, 3, 2, 5, 0, 4]]
    ranking = Cascade([(first, None), (second, 3)]).rerank(lists)
    assert ranking.order.tolist() == [[2, 3, 1, 5, 0, 4]] and ranking.scores is None
