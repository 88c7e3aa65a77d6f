"""Probes of re-rankers whose answer is known: transitive by construction, blind to the order, linear."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled import labelled_benchmark
from small_inputs import QUICK
from torch.nn import functional as F

from experiments import probe as command
from experiments.run import main
from locore.datasets import benchmarks
from locore.datasets.posters import EASY, LINK, overlaps
from locore.descriptors import Descriptors
from locore.evaluation.search import Search
from locore.probes.attribution import influence
from locore.probes.order import order_spread
from locore.probes.transitivity import have_links, probe, probe_lists, triples
from locore.reranking import ListwiseReranker, Ranking, Shortlist
from locore.reranking.classical.chamfer import Chamfer

GRID = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    return benchmarks.create("posters", walls=12, views=16, queries=40, distractors=10)


def places(images) -> Descriptors:
    """Descriptors that say which place of which wall a cell of the picture shows, so that cells of one place match."""
    random = np.random.default_rng(0)
    waves = random.normal(0, 0.15, (2, 32))
    walls = F.normalize(torch.from_numpy(random.normal(size=(64, 16))).float(), dim=-1)
    y, x = np.meshgrid((np.arange(GRID) + 0.5) / GRID, (np.arange(GRID) + 0.5) / GRID, indexing="ij")
    position = torch.from_numpy(np.column_stack([x.ravel(), y.ravel()])).float()
    points = np.stack([camera.on_wall(position.numpy()) for camera in images.cameras()])
    phase = torch.from_numpy(points @ waves).float()
    wall = walls[torch.from_numpy(images.walls) % 64][:, None].expand(-1, GRID**2, -1)
    local = F.normalize(torch.cat([phase.sin(), phase.cos(), 3 * wall], dim=-1), dim=-1)
    count = len(images)
    return Descriptors(
        global_descriptor=F.normalize(local.mean(1), dim=-1),
        local=local,
        position=position.expand(count, -1, -1),
        scale=torch.zeros(count, GRID**2, dtype=torch.long),
        mask=torch.ones(count, GRID**2, dtype=torch.bool),
        weight=torch.ones(count, GRID**2),
    )


class OverAnother:
    """A candidate is as right as the best chain from the query over another candidate."""

    def rerank(self, shortlist: Shortlist) -> Ranking:
        local = shortlist.candidates.local
        alike = torch.einsum("bild,bjmd->bijlm", local, local).amax(-1).mean(-1)
        alike.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        first = torch.einsum("bld,bkmd->bklm", shortlist.query.local, local).amax(-1).mean(-1)
        return Ranking.by((alike + first[:, None]).amax(-1))


def test_triples_overlap_as_they_are_meant_to(world):
    found = triples(world.queries, world.gallery)
    common, within, _ = overlaps(world.queries, world.gallery)
    assert len(found) > 10
    assert (common[found.query, found.easy] >= EASY).all() and (common[found.query, found.hard] == 0).all()
    assert (within[found.easy, found.hard] >= LINK).all()
    assert (world.gallery.walls[found.easy] == world.gallery.walls[found.hard]).all()


def test_a_transitive_re_ranker_gains_and_a_pair_wise_one_does_not(world):
    asked, listed = places(world.queries), places(world.gallery)
    lists = probe_lists(triples(world.queries, world.gallery), world.queries, world.gallery, asked, listed, 8)
    assert torch.equal(lists.shared.sum(1), lists.elsewhere.sum(1)) and not (lists.shared & lists.elsewhere).any()
    own = world.gallery.walls[lists.candidates.numpy()] == lists.walls[:, None]
    assert own[:, :2].all() and not own[:, 2:].any()
    alone = probe(Chamfer(), lists, asked, listed, CPU, 8)
    assert not alone.gain.any() and not alone.elsewhere.any() and not alone.places.any()
    over = probe(OverAnother(), lists, asked, listed, CPU, 8)
    assert over.gain.mean() > 0.3 and (over.gain >= -1e-6).all() and over.places.max() > 0
    whole = Shortlist.gather(asked, lists.query, listed, lists.candidates)
    ranked = Chamfer().rerank(whole).order.tolist()
    wanted = [[c for c in order if c != 0].index(1) + 1 for order in ranked]  # of the hard view, without the easy one
    assert alone.place.tolist() == wanted and max(wanted) > 1 and (over.place == 1).all()
    torch.manual_seed(0)
    model = ListwiseReranker("pairwise", 80, 80, size="mini", settings={"width": 32, "depth": 2, "heads": 2})
    listwise = ListwiseReranker("transformer", 80, 80, size="mini", settings={"width": 32, "depth": 2, "heads": 2})
    model.embedding.local = listwise.embedding.local = torch.nn.Linear(asked.local.shape[-1], 32)
    model.embedding.global_ = listwise.embedding.global_ = torch.nn.Linear(asked.global_descriptor.shape[-1], 32)
    assert np.abs(probe(model, lists, asked, listed, CPU, 8).gain).max() < 1e-4
    assert np.abs(probe(listwise, lists, asked, listed, CPU, 8).gain).max() > 1e-3


def test_a_link_is_on_a_list_that_holds_all_of_it(world):
    images = world.gallery
    common, within, _ = overlaps(images, images)
    ends = (images.walls[:, None] == images.walls) & (common == 0)
    asking, far = np.argwhere(ends)[:, 0], np.argwhere(ends)[:, 1]
    found = 0
    for one, other in zip(asking.tolist(), far.tolist(), strict=True):
        between = np.flatnonzero((common[one] >= LINK) & (within[other] >= LINK))
        between = between[(between != one) & (between != other)]
        if not len(between):
            continue
        strangers = np.flatnonzero(images.walls != images.walls[one])[:4]
        lists = np.zeros((len(images.walls), 6), dtype=np.int64)
        lists[one] = [between[0], other, *strangers]
        assert have_links(images, lists)[one]
        lists[one] = [strangers[0], other, *strangers]
        assert not have_links(images, lists)[one]
        found += 1
        if found == 3:
            break
    assert found == 3


class ByPlace:
    """Scores that say where a candidate was read, and nothing of what it is."""

    def rerank(self, shortlist: Shortlist) -> Ranking:
        return Ranking.by(-torch.arange(shortlist.similarities.shape[1]).float().expand_as(shortlist.similarities))


def test_the_spread_over_orders_is_none_or_all(world):
    asked, listed = places(world.queries), places(world.gallery)
    benchmark = labelled_benchmark(world.queries.walls, world.gallery.walls)
    searched = Search.build(benchmark, asked, listed, 30)
    queries = np.arange(6)
    blind = order_spread(Chamfer(), searched, 30, queries, CPU, 4, orders=5)
    assert blind.scores is not None and blind.scores.max() < 1e-5 and blind.metric.max() < 1e-9
    np.testing.assert_allclose(blind.shuffled, blind.searched)
    order = searched.rerank(Chamfer(), 30, 8, CPU).order
    np.testing.assert_allclose(blind.searched, searched.metrics(order)["mAP@R"][queries])
    bound = order_spread(ByPlace(), searched, 30, queries, CPU, 4, orders=50)
    assert bound.scores is not None and bound.scores.min() > 0.8
    np.testing.assert_allclose(bound.searched, searched.metrics(None)["mAP@R"][queries])
    # In a random order the expected metric is that of chance.
    assert bound.shuffled.mean() < bound.searched.mean() and bound.metric.mean() > 0


@pytest.mark.parametrize("backbone", ["transformer", "mamba", "rwkv", "longformer"])
def test_influence_is_the_derivative_towards_the_mean_token(backbone):
    torch.manual_seed(0)
    model = ListwiseReranker(backbone, 8, 16, settings={"width": 32, "depth": 2, "heads": 2})
    drawn = Shortlist.random(2, 5, 3, 8, 16)
    mask = torch.ones(2, 5, 3, dtype=torch.bool)
    mask[0, 4, 1:] = False
    shortlist = replace(drawn, candidates=replace(drawn.candidates, mask=mask))
    found = influence(model, shortlist, 2)
    assert found.shape == (2, 6, 5) and not found[0, 5, 2:4].any()
    embedded = model.embedded(shortlist)
    real, step = embedded.real[..., None], 1e-2
    average = (embedded.blocks * real).sum(dim=(1, 2)) / real.sum(dim=(1, 2))

    def score(share: float) -> torch.Tensor:
        blocks = embedded.blocks.clone()
        blocks[:, 3, 1] += share * (blocks[:, 3, 1] - average)
        changed = type(embedded)(blocks, embedded.real, embedded.similarities, embedded.present)
        return model.rerank(changed).scores[:, 2]

    expected = (score(step) - score(-step)) / (2 * step)
    torch.testing.assert_close(found[:, 3, 1], expected, atol=1e-4, rtol=1e-2)


def run(method, out, *lines):
    world = [f"posters.{n} = {v}" for n, v in {"walls": 9, "views": 16, "queries": 12, "distractors": 5}.items()]
    settings = [line for line in QUICK if not line.startswith("Data.")]
    settings += [*world, "Data.benchmark = 'posters'", "Extractor.grid_size = 4", "Reranking.ensemble = False", *lines]
    arguments = [part for line in settings for part in ("--set", line)]
    assert main(["--gin", f"gin/{method}.gin", *arguments, "--out", str(out)]) == 0


@pytest.mark.slow  # tests/report runs it as well
def test_the_command_probes_runs(tmp_path, capsys):
    run("query_attention", tmp_path / "alone", "Model.matching = 'none'", "Model.residual = None")
    assert command.main([str(tmp_path / "alone"), "--queries", "4", "--orders", "3", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())["runs"]["alone"]
    assert abs(found["transitivity gain"]["mean"]) < 1e-4  # a candidate never meets another there
    assert 0 <= found["trained with a link, %"]["mean"] <= 100
    assert found["order: mAP"]["low"] <= found["order: mAP"]["mean"] <= found["order: mAP"]["high"]
    assert (tmp_path / "links.png").stat().st_size > 10_000
    assert "| alone |" in (tmp_path / "probe.md").read_text() and (tmp_path / "probe.png").stat().st_size > 1000
    run("peers/chamfer", tmp_path / "chamfer")
    capsys.readouterr()
    assert command.main([str(tmp_path / "chamfer")]) == 2
    assert "no weights of its own" in capsys.readouterr().err
    assert command.main([str(tmp_path / "none")]) == 2
    assert "is not a finished run" in capsys.readouterr().err
