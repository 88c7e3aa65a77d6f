"""SOP, CUB, Cars196 and In-shop on miniatures in their published layouts."""

import json
import logging

import numpy as np
import pytest
from dataset_trees import CLASSES, IMAGES, TREES
from PIL import Image
from small_inputs import QUICK

from experiments.run import main
from locore.datasets import benchmarks

KS = {"sop": (1, 10, 100, 1000), "cub": (1, 2, 4, 8), "cars196": (1, 2, 4, 8), "inshop": (1, 10, 20, 30)}
LIST = {
    "sop": "Stanford_Online_Products/Ebay_test.txt",
    "cub": "CUB_200_2011/image_class_labels.txt",
    "cars196": "anno_test.csv",
    "inshop": "Eval/list_eval_partition.txt",
}
every = pytest.mark.parametrize("name", TREES)


@pytest.fixture
def root(name, tmp_path):
    TREES[name](tmp_path / "data")
    return tmp_path / "data"


@every
def test_the_published_split_and_ks(name, root, caplog):
    with caplog.at_level(logging.WARNING):
        benchmark = benchmarks.create(name, root=str(root))
    assert benchmark.suite.ks == KS[name]
    assert len(benchmark.train) == CLASSES * IMAGES
    assert len(np.unique(benchmark.gallery.labels)) == CLASSES
    assert not set(benchmark.train.labels) & set(benchmark.gallery.labels)
    assert benchmark.queries.image(0).mode == "RGB"
    answers = benchmark.protocols["all"].positive
    if name == "inshop":
        assert benchmark.self_index is None and len(benchmark.queries) == CLASSES
        assert all(len(right) == IMAGES - 1 for right in answers)
        assert not set(benchmark.queries.names) & set(benchmark.gallery.names)
    else:
        assert len(benchmark.queries) == len(benchmark.gallery) == CLASSES * IMAGES
        assert all(own not in right for own, right in zip(benchmark.self_index, answers, strict=True))
    for row in (0, len(benchmark.queries) - 1):
        assert {benchmark.gallery.labels[i] for i in answers[row]} == {benchmark.queries.labels[row]}
    assert "were published" in caplog.text and str(CLASSES * IMAGES) in caplog.text  # a miniature is not the real thing


@every
def test_fewer_queries_on_demand(name, root):
    assert len(benchmarks.create(name, root=str(root), max_queries=5).queries) == 5


@every
def test_a_missing_list_or_image_is_named(name, root, tmp_path):
    with pytest.raises(ValueError, match=r"is missing\. Get it from https://"):
        benchmarks.create(name, root=str(tmp_path / "none"))
    image = sorted(root.rglob("*.[jJ][pP][gG]"))[-1]
    image.unlink()
    with pytest.raises(ValueError, match=rf"{image.name}' is missing\. Get it from https://"):
        benchmarks.create(name, root=str(root))
    (root / LIST[name]).unlink()
    with pytest.raises(ValueError, match=rf"{LIST[name]}' is missing\. Get it from https://"):
        benchmarks.create(name, root=str(root))


@every
def test_a_damaged_list_is_reported(name, root):
    path = root / LIST[name]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "1 x", *lines[4:]]))
    with pytest.raises(ValueError, match=r"damaged|columns"):
        benchmarks.create(name, root=str(root))


@pytest.mark.parametrize(("name", "size"), [("cub", (40, 30)), ("inshop", (40, 30))])
def test_crops(name, root, size):
    whole, cut = benchmarks.create(name, root=str(root)), benchmarks.create(name, root=str(root), crop=True)
    assert whole.train.image(0).size == (64, 64) and cut.train.image(0).size == size
    left, top = 10, 20
    expected = whole.gallery.image(3).crop((left, top, left + size[0], top + size[1]))
    assert cut.gallery.image(3).tobytes() == expected.tobytes()
    assert cut.train.fingerprint != whole.train.fingerprint


@every
def test_grey_cmyk_and_truncated_images(name, root):
    first, second, third, *_ = sorted(root.rglob("*.[jJ][pP][gG]"))
    Image.open(first).convert("L").save(first)
    Image.open(second).convert("CMYK").save(second)
    third.write_bytes(third.read_bytes()[:200])
    benchmark = benchmarks.create(name, root=str(root))
    images = {
        images.names[i]: (images, i) for images in (benchmark.train, benchmark.gallery) for i in range(len(images))
    }
    for path in (first, second):
        images_, index = next(found for key, found in images.items() if str(path).endswith(key))
        assert images_.image(index).mode == "RGB"
    images_, index = next(found for key, found in images.items() if str(third).endswith(key))
    with pytest.raises(ValueError, match=rf"Cannot read the image '.*{third.name}'"):
        images_.image(index)


@every
def test_from_images_to_the_table(name, root, tmp_path, capsys):
    settings = [part for line in QUICK for part in ("--set", line)]
    settings += ["--set", f"Data.benchmark = '{name}'", "--set", f"{name}.root = '{root}'"]
    assert main(["--gin", "gin/query_attention.gin", "--out", str(tmp_path / "run"), *settings]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    of_the_paper = set() if name == "cars196" else {"mAP@R+1"}
    assert set(metrics["global"]) == {*(f"R@{k}" for k in KS[name]), "mAP@R", "R-precision", *of_the_paper}
    assert metrics["benchmark"] == name and f"R@{KS[name][1]}" in capsys.readouterr().out
