"""Grocery Store data set, on a miniature in its own layout."""

import zipfile

import numpy as np
import pytest
from dataset_trees import CLASSES, IMAGES, groceries

from locore.datasets import benchmarks
from locore.pipeline.settings import Data


@pytest.fixture
def root(tmp_path):
    groceries(tmp_path / "data")
    return tmp_path / "data"


def test_odd_classes_are_searched_and_even_ones_train(root, caplog):
    benchmark = benchmarks.create("groceries", root=str(root))
    assert len(benchmark.train) == len(benchmark.gallery) == len(benchmark.queries) == CLASSES * IMAGES
    assert set(benchmark.train.labels % 2) == {0} and set(benchmark.gallery.labels % 2) == {1}
    assert not any("iconic" in name for name in [*benchmark.train.names, *benchmark.gallery.names])
    assert "were published" in caplog.text  # a miniature is not the real thing
    assert benchmark.queries.image(0).mode == "RGB"


def test_the_first_protocol_asks_for_photographs_of_other_visits(root):
    benchmark = benchmarks.create("groceries", root=str(root))
    first, second = benchmark.protocols.values()
    for row, name in enumerate(benchmark.queries.names):
        same = np.flatnonzero(benchmark.gallery.labels == benchmark.queries.labels[row])
        assert set(second.positive[row]) == set(same) - {row}
        if "test/" not in name:
            assert not len(first.positive[row])  # is no query
            continue
        shown = [benchmark.gallery.names[i] for i in first.positive[row]]
        assert len(shown) == 2 and not any("test/" in other for other in shown)
        assert set(first.junk[row]) == set(first.demoted[row])
        assert {benchmark.gallery.names[i] for i in first.junk[row]} == {
            other for other in benchmark.gallery.names if "test/" in other and other != name
        }


def test_a_zip_and_the_folder_beside_the_lists_are_the_same_benchmark(root, tmp_path):
    archive = tmp_path / "groceries.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*.*"):
            file.write(path, "GroceryStoreDataset" / path.relative_to(root))
    benchmark = benchmarks.create("groceries", root=str(root))
    for place in (archive, root / "dataset"):
        other = benchmarks.create("groceries", root=str(place))
        assert (other.gallery.labels == benchmark.gallery.labels).all()
        assert other.gallery.image(5).tobytes() == benchmark.gallery.image(5).tobytes()


def test_each_half_of_the_classes_asks_the_whole_gallery(root):
    whole, even, odd = (Data("groceries", {"root": str(root)}, asked).load() for asked in ("all", "even", "odd"))
    classes = [np.unique(each.queries.labels) for each in (even, odd)]
    assert not np.isin(*classes).any() and len(classes[0]) + len(classes[1]) == len(np.unique(whole.queries.labels))
    assert len(even.queries) + len(odd.queries) == len(whole.queries) and len(even.gallery) == len(whole.gallery)
    rows = np.flatnonzero(np.isin(whole.queries.labels, classes[1]))
    assert (odd.self_index == whole.self_index[rows]).all()
    for name, answers in odd.protocols.items():
        for part in ("positive", "junk", "demoted"):
            expected = [getattr(whole.protocols[name], part)[i] for i in rows]
            assert all(np.array_equal(a, b) for a, b in zip(getattr(answers, part), expected, strict=True))
    with pytest.raises(ValueError, match=r"Unknown Data.asked 'evn'.*did you mean 'even'"):
        Data("groceries", {"root": str(root)}, "evn")


def test_fewer_queries_on_demand(root):
    assert len(benchmarks.create("groceries", root=str(root), max_queries=5).queries) == 5


def test_what_is_missing_or_damaged_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"none' is missing\. Get it from https://"):
        benchmarks.create("groceries", root=str(tmp_path / "none"))
    image = sorted(root.rglob("*_003.jpg"))[-1]
    image.rename(tmp_path / "elsewhere.jpg")
    with pytest.raises(ValueError, match=rf"{image.name}' is missing\. Get it from https://"):
        benchmarks.create("groceries", root=str(root))
    lines = root / "dataset" / "test.txt"
    lines.write_text("a photograph\n")
    with pytest.raises(ValueError, match=r"test\.txt of groceries in .* is damaged at the line 'a photograph'"):
        benchmarks.create("groceries", root=str(root))
    lines.unlink()
    with pytest.raises(ValueError, match=r"test\.txt' is missing\. Get it from https://"):
        benchmarks.create("groceries", root=str(root))
