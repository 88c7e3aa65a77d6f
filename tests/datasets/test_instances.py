"""ILIAS and the lists of ELViS on miniatures of their folders, and what mAP@k has to hold."""

import gzip
import pickle

import numpy as np
import pytest
from dataset_trees import pictures, put
from sklearn.metrics import average_precision_score

import locore
from locore.datasets import benchmarks
from locore.metrics.suites import MapAt

EXTRACTOR = locore.Extractor(image_size=32, grid_size=2)


def lists(root, classes=4, images=5, with_classes=True):
    source = pictures()
    named = [(f"images/{label}/{view}.jpg", label) for label in range(classes) for view in range(images)]
    for path, _ in named:
        put(root / path, next(source))

    def write(file, rows):
        (root / file).write_text("\n".join(f"{p},{c}" if with_classes else p for p, c in rows) + "\n")

    write("test_gallery.txt", named)
    write("test_query.txt", named[::images])
    return named


@pytest.mark.parametrize("name", ["met", "rp2k", "sop1k"])
def test_lists_with_classes_are_read_and_searched(name, tmp_path):
    lists(tmp_path)
    benchmark = benchmarks.create(name, root=str(tmp_path))
    assert len(benchmark.queries) == 4 and len(benchmark.gallery) == 20
    assert all(len(right) == 4 for right in benchmark.protocols["all"].positive)  # without the query itself
    found = locore.evaluate(locore.rerankers.create("chamfer"), benchmark, EXTRACTOR, candidates=6)["all"]
    assert set(found["global"]) == {"mAP@100"} and 20 < found["global"]["mAP@100"] <= 100


@pytest.mark.parametrize("name", ["instre", "product1m"])
def test_lists_with_a_ground_truth_are_read_and_searched(name, tmp_path):
    named = lists(tmp_path, with_classes=False)
    truth = []
    for query in range(0, len(named), 5):
        own = np.arange(query, query + 5)
        truth.append({"ok": own[2:], "junk": own[:2], "bbx": [1, 2, 30, 31]})
    (tmp_path / f"gnd_{name}.pkl").write_bytes(pickle.dumps({"gnd": truth}))
    benchmark = benchmarks.create(name, root=str(tmp_path))
    assert benchmark.queries.image(0).size == (29, 29) and benchmark.suite.depth(np.array([3]), 10**6) == 102
    found = locore.evaluate(locore.rerankers.create("chamfer"), benchmark, EXTRACTOR, candidates=6)["all"]
    assert 20 < found["reranked"]["mAP@100"] <= 100
    (tmp_path / f"gnd_{name}.pkl").write_bytes(pickle.dumps({"gnd": truth[:-1]}))
    with pytest.raises(ValueError, match=r"3 queries, and test_query.txt 4"):
        benchmarks.create(name, root=str(tmp_path))


def test_what_is_wrong_with_a_list_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"test_query.txt' is missing"):
        benchmarks.create("met", root=str(tmp_path))
    lists(tmp_path, with_classes=False)
    with pytest.raises(ValueError, match="no class after each path"):
        benchmarks.create("met", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"gnd_instre.pkl' is missing"):
        benchmarks.create("instre", root=str(tmp_path))
    (tmp_path / "test_query.txt").write_text("images/0/0.jpg,1\nelsewhere.jpg\n")
    with pytest.raises(ValueError, match="a line without a class"):
        benchmarks.create("met", root=str(tmp_path))


def ilias(root, distractors=6):
    source = pictures()
    asked, right = [], []
    for number in range(3):
        thing = f"thing_{number:03}"
        for kind, count, rows in (("query", 2, asked), ("pos", 4, right)):
            for view in range(count):
                name = f"{thing}/{kind}/{kind[0].upper()}{number:03}_{view:02}.jpg"
                put(root / "ilias_core" / name, next(source))
                (root / "ilias_core" / f"{name[:-4]}_bbox.txt").write_text("3 4 10 20\n8 2 10 12\n")
                rows.append(f"{name},{0.05 * view + 0.03},{20 * view}" if kind == "pos" else f"{name},x")
    others = [f"shard_0/{number}" for number in range(distractors)]
    for name in others:
        put(root / "yfcc" / f"{name}.jpg", next(source))
    ids = root / "image_ids"
    ids.mkdir()
    (ids / "image_query_ids.txt").write_text("\n".join(asked) + "\n")
    (ids / "positive_ids.txt").write_text("\n".join(right) + "\n")
    with gzip.open(ids / "distractor_ids.txt.gz", "wt") as file:
        file.write("\n".join(others) + "\n")
    return root


def test_ilias_is_read_and_searched(tmp_path):
    root = ilias(tmp_path)
    benchmark = benchmarks.create("ilias", root=str(root), distractors=str(root / "yfcc"))
    assert len(benchmark.queries) == 6 and len(benchmark.gallery) == 3 * 4 + 6
    assert benchmark.queries.image(0).size == (15, 22)  # around both boxes
    assert list(benchmark.protocols)[1] == "scale 0-0.069" and len(benchmark.protocols) == 9
    first = benchmark.protocols["scale 0-0.069"]
    assert [len(each) for each in first.positive] == [1] * 6 and [len(each) for each in first.junk] == [3] * 6
    found = locore.evaluate(locore.rerankers.create("chamfer"), benchmark, EXTRACTOR, candidates=6)
    assert 20 < found["all"]["global"]["mAP@1000"] <= 100
    alone = benchmarks.create("ilias", root=str(root))
    easier = locore.evaluate(locore.rerankers.create("chamfer"), alone, EXTRACTOR, candidates=6)
    assert easier["all"]["global"]["mAP@1000"] >= found["all"]["global"]["mAP@1000"]
    (root / "ilias_core" / "thing_000" / "query" / "Q000_00_bbox.txt").write_text("1 2 3\n")
    with pytest.raises(ValueError, match="its lines are not four numbers"):
        benchmarks.create("ilias", root=str(root))
    compressed = gzip.compress(b"a,b\n" * 100)
    for damaged in (b"no gzip", compressed[:-12], compressed[:12] + b"\xff" + compressed[13:]):
        (root / "image_ids" / "distractor_ids.txt.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"distractor_ids.txt.gz' is damaged"):
            benchmarks.create("ilias", root=str(root), distractors=str(root), crop=False)


def test_map_at_k_is_scikit_learns_and_distractors_never_raise_it():
    random = np.random.default_rng(0)
    for _ in range(50):
        count, k = int(random.integers(8, 40)), int(random.integers(3, 20))
        right, junk = random.random(count) < 0.3, random.random(count) < 0.2
        right &= ~junk
        positives = int(right.sum()) + int(random.integers(0, 3))
        if not positives:
            continue
        suite = MapAt(k, most_junk=int(junk.sum()))

        def measured(kept, right=right, junk=junk, positives=positives, suite=suite):
            return suite(right[None, kept], junk[None, kept], np.array([positives]))[suite.main][0]

        head = right[~junk][:k]
        share = head.sum() / min(k, positives)
        wanted = share * average_precision_score(head, -np.arange(len(head))) if head.any() else 0
        before = measured(np.arange(count))
        assert before == pytest.approx(wanted)
        wrong = np.flatnonzero(~right & ~junk)
        fewer = np.setdiff1d(np.arange(count), random.choice(wrong, len(wrong) // 2, replace=False))
        assert measured(fewer) >= before - 1e-12
