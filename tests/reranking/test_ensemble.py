"""Score and global similarity together."""

import json

import numpy as np
import pytest
import torch
from small_inputs import QUICK, write_glyphs

from experiments.run import main
from locore.pipeline.build import with_windows_and_stages
from locore.pipeline.settings import Experiment, Model, Reranking
from locore.reranking import Ensemble, Ranking, Shortlist, StandardisedEnsemble, WithSearch, pairwise


def test_a_standardised_ensemble_in_numpy():
    random = np.random.default_rng(0)
    similarities, scores = random.random((3, 7)), 100 * random.random((3, 7)) - 40
    both = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (similarities, scores)]
    found = StandardisedEnsemble(0.3)(torch.from_numpy(similarities), torch.from_numpy(scores))
    np.testing.assert_allclose(found.numpy(), 0.3 * both[0] + 0.7 * both[1], atol=1e-9)
    # Neither another scale nor a candidate that is not there changes it.
    longer = [torch.from_numpy(np.column_stack([x, np.full(3, y)])) for x, y in ((similarities, 9), (scores, -np.inf))]
    torch.testing.assert_close(StandardisedEnsemble(0.3)(longer[0] * 5 - 1, longer[1] * 7 + 2)[:, :-1], found)
    assert (StandardisedEnsemble(0.3)(*longer)[:, -1] == -torch.inf).all()
    equal = StandardisedEnsemble(0.3)(torch.ones(2, 4), torch.ones(2, 4))
    assert not equal.any()


@pytest.mark.parametrize("kind", [Ensemble, StandardisedEnsemble])
def test_the_best_share_is_found(kind):
    """Similarities that say nothing, scores that know all."""
    random = np.random.default_rng(1)
    right = torch.from_numpy(random.random((200, 9)) < 0.3).double()
    noise = torch.from_numpy(random.random((200, 9)))

    def quality(order):
        return float(right.gather(1, order)[:, :3].mean())

    assert kind.fit(noise, right, quality).alpha < 0.5


def test_a_score_that_says_nothing_gets_a_small_share():
    random = np.random.default_rng(1)
    right = torch.from_numpy(random.random((200, 9)) < 0.3).double()
    found = StandardisedEnsemble.fit(
        right, torch.from_numpy(random.random((200, 9))), lambda order: float(right.gather(1, order)[:, :3].mean())
    )
    assert found.alpha > 0.5


def test_equally_good_ones_leave_the_search_as_it_is():
    assert StandardisedEnsemble.fit(torch.rand(4, 5), torch.rand(4, 5), lambda order: 1.0).alpha == 1.0


class Known:
    def rerank(self, shortlist):
        return Ranking.by(-shortlist.similarities)


class Unscored:
    def rerank(self, shortlist):
        return Ranking(torch.zeros_like(shortlist.similarities, dtype=torch.long), None)


def test_a_re_ranker_with_the_search():
    lists = Shortlist.random(3, 6, 4, 8, 16)
    assert WithSearch(Known(), StandardisedEnsemble(0.7)).rerank(lists).order.tolist() == (
        lists.similarities.argsort(dim=1, descending=True).tolist()
    )
    assert WithSearch(Known(), StandardisedEnsemble(0.3)).rerank(lists).order.tolist() == (
        lists.similarities.argsort(dim=1).tolist()
    )
    with pytest.raises(ValueError, match="an order without scores"):
        WithSearch(Unscored(), StandardisedEnsemble(0.5)).rerank(lists)


def test_the_share_of_one_without_training_is_chosen_on_training_images(tmp_path, cache):
    lines = [*QUICK, f"folder.path = '{write_glyphs(tmp_path / 'images')}'", "Model.method = 'chamfer'"]

    def run(out, *more):
        arguments = [part for line in (*lines, *more) for part in ("--set", line)]
        assert main(["--gin", "gin/data/folder.gin", *arguments, "--out", str(tmp_path / out)]) == 0
        return json.loads((tmp_path / out / "metrics.json").read_text())

    chosen = run("chosen")
    assert chosen["temperature"] is None and set(chosen["difference"]) == {"reranked", "ensemble"}
    again = run("again", f"Reranking.alpha = {chosen['alpha']}")
    search = run("search", "Reranking.alpha = 1.0")
    assert again["ensemble"] == chosen["ensemble"] != search["ensemble"] == chosen["global"]


def test_after_a_first_stage_pairs_are_sorted_at_once_and_not_in_windows():
    torch.manual_seed(0)
    lists, ensemble = Shortlist.random(3, 12, 4, 12, 20), Ensemble(0.5, 0.1)
    model = pairwise.create("rrt", "mini", 12, 20, settings={}).eval()
    settings = Reranking(candidates=12, window=4, first_stages=[("chamfer", 12)])
    both = with_windows_and_stages(Experiment(Model(method="rrt"), settings), model, ensemble)
    expected = ensemble(lists.similarities, model.rerank(lists).scores).argsort(dim=1, descending=True)
    assert torch.equal(both.rerank(lists).order, expected)
