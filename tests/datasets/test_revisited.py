"""Revisited Oxford and Paris: the published ground truth, revisitop's own evaluation, and the protocols' lists."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from locore.datasets import benchmarks
from locore.descriptors import Descriptors
from locore.evaluation.search import Search
from locore.metrics.retrieval import relevance
from locore.metrics.suites import Revisited

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("LOCORE_GOLDEN", GOLDEN))
TRUTH = GOLDEN / "revisitop"
NAMES = {"roxford5k": 4_993, "rparis6k": 6_322}
every = pytest.mark.parametrize("name", NAMES)


@every
def test_agrees_with_revisitop(name):
    expected = json.loads((FOLDER / f"revisitop_{name}.json").read_text())
    ranks = np.load(FOLDER / f"revisitop_{name}.npz")["ranks"].T.astype(np.int64)
    benchmark = benchmarks.create(name, root=str(TRUTH))
    assert len(benchmark.gallery) == NAMES[name] == ranks.shape[1]
    for protocol in ("easy", "medium", "hard"):
        answers = benchmark.protocols[protocol]
        asked = [row for row, right in enumerate(answers.positive) if len(right)]
        right, junk = (relevance(ranks[asked], [x[row] for row in asked]) for x in (answers.positive, answers.junk))
        found = Revisited()(right, junk, np.array([len(answers.positive[row]) for row in asked]))
        theirs = expected[protocol]
        assert asked == [row for row, ap in enumerate(theirs["AP"]) if ap is not None]
        np.testing.assert_allclose(found["mAP"], [ap for ap in theirs["AP"] if ap is not None], atol=1e-6, rtol=0)
        assert found["mAP"].mean() == pytest.approx(theirs["mAP"], abs=1e-6)
        for k, value in theirs["mP"].items():
            assert found[f"mP@{k}"].mean() == pytest.approx(value, abs=1e-6)


@every
def test_queries_are_cropped_and_grouped_by_landmark(name):
    benchmark = benchmarks.create(name, root=str(TRUTH))
    queries = benchmark.queries
    assert len(queries) == 70 and queries.boxes.shape == (70, 4) and benchmark.self_index is None
    assert len(np.unique(queries.labels)) == 12
    assert list(benchmark.protocols) == ["medium", "hard", "hard*", "easy"]


def described(rows: torch.Tensor) -> Descriptors:
    local = torch.zeros(len(rows), 1, 4)
    ones = torch.ones(len(rows), 1)
    return Descriptors(rows, local, torch.zeros(len(rows), 1, 2), ones.long(), ones.bool(), ones)


@every
def test_demoted_images_move_to_the_end_before_the_cut(name):
    """The recipe at full size, written out query by query: junk, and for hard* easy images, never reach the first N."""
    benchmark, random = benchmarks.create(name, root=str(TRUTH)), torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(len(x), 8, generator=random) for x in (benchmark.queries, benchmark.gallery))
    whole = (queries @ gallery.T).argsort(dim=1, descending=True, stable=True).numpy()
    graded = benchmark.protocols
    for protocol, behind in (("medium", graded["medium"].junk), ("hard", graded["medium"].junk), ("hard*", None)):
        search = Search.build(benchmark, described(queries), described(gallery), 100, protocol)
        for row, listed in zip(search.rows, search.neighbours.indices, strict=True):
            moved = set(behind[row] if behind else [*graded["medium"].junk[row], *graded["easy"].positive[row]])
            assert listed[:100].tolist() == [i for i in whole[row] if i not in moved][:100]
            assert set(listed[len(listed) - len(moved) :]) == moved and len(set(listed)) == len(benchmark.gallery)


def test_distractors_follow_the_gallery(tmp_path, caplog):
    (tmp_path / "revisitop1m.txt").write_text("a/1.jpg\nb/2.jpg\n")
    benchmark = benchmarks.create("roxford5k", root=str(TRUTH), distractors=str(tmp_path))
    assert len(benchmark.gallery) == NAMES["roxford5k"] + 2 and benchmark.gallery.names[-1] == "b/2.jpg"
    assert benchmark.name == "roxford5k+1m" and "names 2 images where 1001001" in caplog.text
    with pytest.raises(ValueError, match=r"The image '.*a/1\.jpg' is missing"):
        benchmark.gallery.parts[1].fingerprint  # noqa: B018
    with pytest.raises(ValueError, match=r"Cannot read the image 'b/2\.jpg'"):
        benchmark.gallery.image(NAMES["roxford5k"] + 1)


ANSWER = {"bbx": [0, 0, 1, 1], "easy": [0], "hard": [], "junk": []}


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({"imlist": ["a"], "qimlist": ["b"], "gnd": [{**ANSWER, "easy": [0.5]}]}, "'easy' has something else than"),
        ({"imlist": ["a"], "qimlist": ["b"], "gnd": [ANSWER, ANSWER]}, "1 queries and answers of 2"),
        ({"imlist": ["a"], "qimlist": ["b", "c"], "gnd": [ANSWER, {**ANSWER, "bbx": None}]}, "query 1 has no box"),
        ({"imlist": ["a"], "qimlist": ["b"], "gnd": [{"bbx": [0, 0, 1, 1], "easy": [0]}]}, "'hard' is missing"),
        (None, "is missing. Get it from"),
        ({"imlist": ["a"]}, "is not the ground truth of roxford5k"),
        ({"imlist": ["a"], "qimlist": ["b"], "gnd": [{"bbx": [1, 2, 3]}]}, "is not the ground truth"),
        (
            {"imlist": ["a"], "qimlist": ["b"], "gnd": [{"bbx": [0, 0, 1, 1], "easy": [1], "hard": [], "junk": []}]},
            "an answer is not an image of the list",
        ),
        (
            {"imlist": ["a"], "qimlist": ["b"], "gnd": [{"bbx": [9, 0, 9, 1], "easy": [0], "hard": [], "junk": []}]},
            "a box is not finite or empty",
        ),
    ],
)
def test_ground_truth_that_is_none(tmp_path, truth, words):
    if truth is not None:
        (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(ValueError, match=words):
        benchmarks.create("roxford5k", root=str(tmp_path))


def test_ground_truth_of_older_tools_is_read(tmp_path, caplog):
    truth = {"imlist": list("abcde"), "qimlist": ["q_0", "q_1"]}
    answers = [{"ok": [0, 1], "junk": [2]}, {"ok": np.array([3]), "junk": []}]
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**truth, "gnd": answers}))
    benchmark = benchmarks.create("roxford5k", root=str(tmp_path))
    assert "has no boxes ('bbx'), so the queries are whole images" in caplog.text and benchmark.queries.boxes is None
    assert [each.tolist() for each in benchmark.protocols["medium"].positive] == [[0, 1], [3]]
    assert [each.tolist() for each in benchmark.protocols["medium"].junk] == [[2], []]
    assert not any(map(len, benchmark.protocols["hard"].positive))


def test_the_ground_truth_of_another_is_noticed(tmp_path, caplog):
    (tmp_path / "gnd_roxford5k.pkl").write_bytes((TRUTH / "gnd_rparis6k.pkl").read_bytes())
    benchmarks.create("roxford5k", root=str(tmp_path))
    assert "names 6322 images where 4993 were published" in caplog.text
