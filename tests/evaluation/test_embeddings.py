"""Metrics of anyone's embeddings, against pytorch-metric-learning's, and what is wrong with the files."""

import json

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from experiments.evaluate import main
from locore import retrieval
from locore.evaluation import embeddings as module
from locore.evaluation.embeddings import evaluate_embeddings


def made(rows: int, classes: int, seed: int = 0, dtype=np.float32):
    """Embeddings of classes of very different sizes, around a centre each."""
    generator = np.random.default_rng(seed)
    labels = (classes * generator.random(rows) ** 2).astype(np.int64)
    centres = np.random.default_rng(9).normal(size=(classes, 16))
    return (centres[labels] + 2 * generator.normal(size=(rows, 16))).astype(dtype), labels


def theirs(embeddings, labels, gallery=None, gallery_labels=None):
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    others = () if gallery is None else (torch.from_numpy(gallery), torch.from_numpy(gallery_labels))
    found = calculator.get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(labels), *others)
    return found["precision_at_1"], found["mean_average_precision_at_r"], found["r_precision"]


@pytest.mark.parametrize("small", [False, True])
def test_agrees_with_pytorch_metric_learning(small, monkeypatch):
    if small:  # many pieces give what one gives
        monkeypatch.setattr(retrieval, "ROWS", 37)
        monkeypatch.setattr(retrieval, "QUERIES", 11)
        monkeypatch.setattr(module, "PLACES", 900)
    queries, labels = made(300, 12)
    found = evaluate_embeddings(queries, labels, ks=(1, 10))
    assert [found[n].mean() for n in ("R@1", "mAP@R", "R-precision")] == pytest.approx(
        theirs(queries, labels), abs=1e-6
    )
    gallery, gallery_labels = made(200, 10, seed=1)
    found = evaluate_embeddings(queries, labels, gallery, gallery_labels, ks=(1, 10))
    expected = theirs(queries, labels, gallery, gallery_labels)
    assert [found[n].mean() for n in ("R@1", "mAP@R", "R-precision")] == pytest.approx(expected, abs=1e-6)
    assert len(found["R@1"]) == np.isin(labels, gallery_labels).sum()


def test_each_query_has_its_own_values_in_the_order_given():
    embeddings = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [0.2, 1]])
    found = evaluate_embeddings(embeddings, np.array(["a", "a", "a", "b", "b"]), ks=(1,))
    assert found["R@1"].tolist() == [1, 0, 1, 1, 1]
    assert found["mAP@R"].tolist() == [0.5, 0, 0.5, 1, 1]


def test_deep_rankings_are_those_of_a_stable_sort(monkeypatch):
    monkeypatch.setattr(retrieval, "PLACES", 3000)
    random = np.random.default_rng(0)
    rows = random.integers(-2, 3, (400, 3)).astype(np.float32)  # many ties, 0.0 and -0.0 among them
    for depth in (400, 57, 1):
        similarities, indices = retrieval._sorted(rows[:20], rows, depth)
        expected = np.argsort(-(rows[:20] @ rows.T), axis=1, kind="stable")[:, :depth]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(similarities, np.take_along_axis(rows[:20] @ rows.T, expected, axis=1))
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, 0.0], dtype=np.float32)
    assert retrieval._first(special, 9).tolist() == np.argsort(-special, kind="stable").tolist()


def test_labels_are_compared_as_they_are():
    embeddings, _ = made(12, 4)
    numbers = np.arange(12) // 2 + 2**53
    expected = evaluate_embeddings(embeddings, numbers)
    assert set(expected) == {"R@1", "R@10", "mAP@R", "R-precision"}  # so many as 12 rows have images for
    for queries, gallery in (
        (numbers, numbers.astype(np.uint64)),
        (numbers.astype(np.uint64), numbers),
        (numbers.astype(object), numbers.astype(object)),
        (numbers.astype("M8[s]"), numbers.astype("M8[s]")),
    ):
        found = evaluate_embeddings(embeddings, queries, embeddings[::-1], gallery[::-1], ks=(1,))
        assert len(found["R@1"]) == 12 and found["R@1"].all()  # each finds itself there
    mixed = numbers.astype(object)
    mixed[3] = "three"
    for queries, gallery, words in (
        (numbers, numbers.astype(float), "give both of one type"),
        (numbers, numbers.astype("M8[s]"), "give both of one type"),
        (numbers, numbers.astype(np.uint64) + np.uint64(2**63), "give both of one type"),
        (mixed, mixed, "objects that do not compare"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_embeddings(embeddings, queries, embeddings, gallery, ks=(1,))


def test_a_gallery_has_to_fit():
    queries, labels = made(50, 4)
    for gallery, gallery_labels, words in (
        (queries, None, "go together"),
        (queries[:, :3], labels, "width 16 and the gallery 3"),
        (queries, labels.astype(str), "give both of one type"),
        (queries, labels + 100, "none of their labels occurs there"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_embeddings(queries, labels, gallery, gallery_labels, ks=(1,))


def test_the_command(tmp_path, capsys):
    embeddings, labels = made(120, 6, dtype=np.float16)
    np.save(tmp_path / "e.npy", embeddings)
    np.save(tmp_path / "y.npy", labels)
    files = ["--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "y.npy")]
    assert main([*files, "--ks", "1", "5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = evaluate_embeddings(embeddings, labels, ks=(1, 5))
    assert printed == {n: pytest.approx(100 * v.mean(), abs=1e-3) for n, v in expected.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, y: (e[:-1], y), "have shape (119, 16), their labels (120,)"),
        (lambda e, y: (e[:, 0], y), "have shape (120,)"),
        (lambda e, y: (np.where(np.arange(16) == 3, np.nan, e), y), "not finite"),
        (lambda e, y: (e, np.arange(120)), "no label occurs twice"),
        (lambda e, y: (e, y.astype(object)), "not an array of numbers or strings"),
        (lambda e, y: (e[:20], y[:20]), "R@100 needs more than the 19"),
        (lambda e, y: (e.astype(str), y), "not numbers"),
        (lambda e, y: (e * 1e30, y), "not finite, or too large"),
    ],
)
def test_wrong_files_get_one_sentence(tmp_path, capsys, change, words):
    for name, array in zip("ey", change(*made(120, 6)), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    files = ["--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "y.npy")]
    assert main([*files, "--ks", "1", "100"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_missing_files_get_one_sentence(tmp_path, capsys):
    (tmp_path / "e.npy").write_bytes(b"nothing")
    np.savez(tmp_path / "several.npz", a=np.arange(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "several.npz").read_bytes()[:50])
    np.save(tmp_path / "y.npy", np.arange(3))
    assert main(["--embeddings", str(tmp_path / "none.npy"), "--labels", str(tmp_path / "y.npy")]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert main(["--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "y.npy")]) == 2
    assert "not an array" in capsys.readouterr().err
    for name, words in (("several.npz", "holds several arrays"), ("cut.npz", "not an array")):
        assert main(["--embeddings", str(tmp_path / name), "--labels", str(tmp_path / "y.npy")]) == 2
        assert words in capsys.readouterr().err
    files = ["--embeddings", str(tmp_path / "y.npy"), "--labels", str(tmp_path / "y.npy")]
    assert main([*files, "--gallery", str(tmp_path / "y.npy")]) == 2
    assert "go together" in capsys.readouterr().err
