"""The landmark world: what two views have in common is what their pictures show, and the protocols follow from it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from small_inputs import QUICK

from experiments.run import main
from locore.datasets import benchmarks, posters
from locore.datasets._walls import HEIGHT, PALETTES, WIDTH, style, wall
from locore.datasets.benchmark import JUNK, RIGHT, WRONG
from locore.datasets.posters import HARD, LINK, PIXELS, Camera, Posters, Transitive
from locore.metrics.suites import Revisited
from locore.report import pictures, tables

WORLD = {"walls": 8, "views": 12, "queries": 8, "distractors": 10}


@pytest.fixture(scope="module")
def world():
    return benchmarks.create("posters", **WORLD)


def test_a_pixel_shows_the_place_that_the_homography_says(monkeypatch):
    """On a wall whose colours are its coordinates, with the light switched off."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    coloured = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, 0 * x], axis=-1).astype(np.uint8)
    monkeypatch.setattr(posters, "wall", lambda seed, number: Image.fromarray(coloured))
    for light in ("Brightness", "Contrast", "Color"):
        monkeypatch.setattr(getattr(posters.ImageEnhance, light), "enhance", lambda self, factor: self.image)
    monkeypatch.setattr(posters.ImageFilter, "GaussianBlur", lambda radius: posters.ImageFilter.MedianFilter(1))
    for number in range(6):
        view = Camera(0, 3, number)
        view.occluder = None
        pixels = np.asarray(view.render()).astype(float)
        for u, v in ((10, 10), (100, 30), (64, 64), (20, 110)):
            place = view.homography @ [u + 0.5, v + 0.5, 1]
            expected = place[:2] / place[2] * 255 / [WIDTH, HEIGHT]
            np.testing.assert_allclose(pixels[v, u, :2], expected, atol=2)


def inside(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    edges = np.roll(corners, -1, axis=0) - corners
    offsets = points[:, None] - corners
    return (edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0] >= 0).all(axis=1)


def test_common_parts_agree_with_points_thrown_at_random():
    random = np.random.default_rng(0)
    points = random.uniform([0, 0], [WIDTH, HEIGHT], (40_000, 2))
    views = [Camera(0, 5, number) for number in range(10)]
    for view in views:
        view.occluder = None
    seen = np.stack([view.seen() for view in views])
    hit = np.stack([inside(view.corners, points) for view in views])
    expected = (hit[:, None] & hit).sum(-1) / np.minimum(hit.sum(-1)[:, None], hit.sum(-1))
    np.testing.assert_allclose(posters._common(seen, seen), expected, atol=0.05)
    assert ((expected > HARD).sum(), (expected == 0).sum()) > (20, 20)


def test_what_is_hidden_is_not_seen():
    view = Camera(0, 1, 0)
    view.occluder = None
    whole = view.seen().sum()
    assert view.shown == 1
    view.occluder = (0, 0, PIXELS / 2, PIXELS)
    assert view.seen().sum() < 0.7 * whole and view.shown == 0.5


def test_the_same_numbers_are_the_same_picture_and_other_ones_another(world):
    image = np.asarray(world.gallery.image(3))
    again = benchmarks.create("posters", **WORLD).gallery
    assert (np.asarray(again.image(3)) == image).all() and again.fingerprint == world.gallery.fingerprint
    other = benchmarks.create("posters", seed=1, **WORLD).gallery
    assert other.fingerprint != again.fingerprint and (np.asarray(other.image(3)) != image).any()


def test_no_wall_is_in_two_places(world):
    train, gallery = set(world.train.walls), set(world.gallery.walls)
    assert not train & gallery and set(world.queries.walls) <= gallery
    assert len(gallery) == WORLD["walls"] - 2 * WORLD["walls"] // 3 + WORLD["distractors"]
    both = {*zip(world.queries.walls, world.queries.views, strict=True)} & {
        *zip(world.gallery.walls, world.gallery.views, strict=True)
    }
    assert not both


def test_grades_are_apart_and_of_the_querys_wall(world):
    easy, hard = (world.protocols[name].positive for name in ("easy", "hard"))
    medium = world.protocols["medium"]
    for row in range(len(world.queries)):
        own = set(np.flatnonzero(world.gallery.walls == world.queries.walls[row]))
        grades = [set(easy[row]), set(hard[row]), set(medium.junk[row])]
        assert set.union(*grades) == own and sum(map(len, grades)) == len(own)
        assert set(medium.positive[row]) == grades[0] | grades[1]
        assert set(world.protocols["hard*"].demoted[row]) == grades[2] | grades[0]
    assert sum(map(len, easy)) > 8 and sum(map(len, hard)) > 8


def test_transitive_views_are_linked_on_the_shortlist():
    """A chain: the query sees 0, 0 and 1 overlap, 1 and 2 overlap; 3 is another wall's, 4 is linked to nothing."""
    common = np.array([[0.5, 0.0, 0.0, 0.0, 0.0]])
    links = np.eye(5, dtype=bool)
    for one, other in ((0, 1), (1, 2)):
        links[one, other] = links[other, one] = True
    own, counted = np.array([[True, True, True, False, True]]), np.ones((1, 5), dtype=bool)
    protocol = Transitive(common, links, own, counted)
    assert protocol(np.array([[3, 2, 1, 0, 4]])).positive[0].tolist() == [1, 2]
    assert protocol(np.array([[3, 2, 1, 0, 4]])).junk[0].tolist() == [0, 4]
    assert protocol(np.array([[3, 2, 0, 4]])).positive[0].tolist() == []  # without 1 the chain is broken
    assert LINK > HARD
    counted[0, [1, 3]] = False  # hidden, and another colour: neither right nor wrong nor a link
    assert protocol(np.array([[3, 2, 1, 0, 4]])).positive[0].tolist() == []
    assert protocol(np.array([[3, 2, 1, 0, 4]])).junk[0].tolist() == [0, 1, 2, 3, 4]


def test_colours_do_not_tell_what_is_transitive(world):
    """Of the candidates that count, right and wrong, all are painted as the query is."""
    gallery, queries = world.gallery, world.queries
    everyone = np.tile(np.arange(len(gallery)), (len(queries), 1))
    answers = world.protocols["transitive"](everyone)
    colours = {int(n): style(0, int(n)) for n in np.concatenate([gallery.walls, queries.walls])}
    found = 0
    for row, (right, junk) in enumerate(zip(answers.positive, answers.junk, strict=True)):
        counted = np.setdiff1d(everyone[row], junk)
        assert {colours[int(n)] for n in gallery.walls[counted]} <= {colours[int(queries.walls[row])]}
        assert set(right) <= set(counted) and (gallery.walls[right] == queries.walls[row]).all()
        wrong = np.setdiff1d(counted, right)
        assert (gallery.walls[wrong] != queries.walls[row]).all()
        found += len(right) > 0 and len(wrong) > 0
    assert found
    for number in range(4):
        _, colour = max(wall(0, number).getcolors(WIDTH * HEIGHT))
        assert "#{:02x}{:02x}{:02x}".format(*colour) in PALETTES[style(0, number)]


def test_one_command_from_walls_to_every_protocol(tmp_path, capsys):
    lines = [line for line in QUICK if not line.startswith("Data.")]
    lines += ["Data.benchmark = 'posters'", *(f"posters.{name} = {value}" for name, value in WORLD.items())]
    lines += ["Reranking.candidates = 20", "Reranking.window = 8"]
    settings = [part for line in lines for part in ("--set", line)]
    assert main(["--gin", "gin/query_attention.gin", "--out", str(tmp_path / "run"), *settings]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["protocols"]) == ["medium", "hard", "hard*", "easy", "transitive"]
    for measured in metrics["protocols"].values():
        assert measured["shown"] == ["mP@1", "mP@10", "mAP"]
        assert 0 < measured["reranked"]["mAP"] <= measured["oracle"]["mAP"] <= 100
        assert set(measured["difference"]) == {"reranked", "ensemble"}
    printed = capsys.readouterr().out
    assert "transitive" in printed and "mP@10" in printed
    with open(tmp_path / "run" / "queries.csv", newline="") as file:
        queries = list(csv.DictReader(file))
    for protocol, measured in metrics["protocols"].items():
        values = [float(row["reranked mAP"]) for row in queries if row["protocol"] == protocol]
        assert 100 * np.mean(values) == pytest.approx(measured["reranked"]["mAP"], abs=1e-2)
        assert tables.rows({"one": [metrics]}, {}, protocol)[1]["mAP"].startswith(f"{100 * np.mean(values):.1f} (")
    gains = {(protocol, "mAP"): {"one": (-1.0, 2.0)} for protocol in metrics["protocols"]}
    pictures.comparison(tmp_path / "table.png", {"one": [metrics]}, gains)
    assert Image.open(tmp_path / "table.png").width > 1000


def test_settings_that_are_too_small_are_reported():
    with pytest.raises(ValueError, match="4 walls, 4 views of each and one query"):
        benchmarks.create("posters", walls=2)


def test_training_images_are_judged_as_medium_does_and_validate_by_its_metric():
    """The gallery's views, asked and answered by the training's judge, against the benchmark's own answers."""
    benchmark = benchmarks.create("posters", **WORLD)
    asking, gallery = benchmark.queries, benchmark.gallery
    walls, views = (np.concatenate([getattr(each, name) for each in (asking, gallery)]) for name in ("walls", "views"))
    found = Posters(0, walls, views).answers(np.arange(len(asking)))
    medium, count = benchmark.protocols["medium"], len(asking)
    for part in ("positive", "junk"):
        for ours, theirs in zip(getattr(found, part), getattr(medium, part), strict=True):
            assert (ours[ours >= count] - count == theirs).all()
    assert benchmark.train.suite == benchmark.train.subset(np.arange(3)).suite == Revisited()


def test_other_views_of_a_wall_count_as_they_are_set():
    rows = np.arange(60)
    judged = {
        (linked, unlinked): benchmarks.create("posters", **WORLD, linked=linked, unlinked=unlinked)
        .train.subset(rows[::-1])
        .judged(rows, np.tile(rows, (60, 1)))
        for linked, unlinked in (("ignored", "ignored"), ("right", "right"), ("right", "wrong"), ("wrong", "ignored"))
    }
    walls = benchmarks.create("posters", **WORLD).train.labels[::-1]
    same = walls[:, None] == walls
    assert ((judged["right", "right"] == RIGHT) == same).all()
    ignored = judged["ignored", "ignored"] == JUNK
    linked = (judged["wrong", "ignored"] == WRONG) & same
    assert linked.any() and (linked <= ignored).all() and (ignored & ~linked).any()
    assert ((judged["right", "wrong"] == RIGHT) == (same & ~(ignored & ~linked))).all()
    with pytest.raises(ValueError, match=r"Unknown posters.linked 'wright'.*did you mean 'right'"):
        benchmarks.create("posters", linked="wright")
