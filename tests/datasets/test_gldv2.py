"""Google Landmarks v2 in miniature: its lists in the published layout, with real pictures."""

import numpy as np
import pytest
from small_inputs import write_glyphs

from locore.datasets import benchmarks
from locore.datasets._train_list import read_list
from locore.metrics.suites import MapAt


@pytest.fixture
def root(tmp_path):
    pictures = sorted(write_glyphs(tmp_path / "glyphs", classes=2, images=4).rglob("*.png"))
    names = {"index": ["aab0", "abc1", "bcd2", "cde3"], "test": ["dea4", "efg5", "fgh6"]}
    for part, ids in names.items():
        for name, picture in zip(ids, pictures, strict=False):
            path = tmp_path / part / name[0] / name[1] / name[2] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.read_bytes())
    (tmp_path / "index.csv").write_text("id\n" + "\n".join(names["index"]) + "\n")
    (tmp_path / "retrieval_solution_v2.1.csv").write_text(
        "id,images,Usage\ndea4,abc1 cde3,Public\nefg5,None,Ignored\nfgh6,aab0,Private\n"
    )
    (tmp_path / "train.txt").write_text("index/a/a/b/aab0.jpg,7,10,10\nindex/a/b/c/abc1.jpg,8,10,10\n")
    return tmp_path


def test_each_part_asks_its_own_queries(root, caplog):
    public = benchmarks.create("gldv2", root=str(root))
    assert public.queries.names == ["test/d/e/a/dea4.jpg"] and public.protocols["all"].positive[0].tolist() == [1, 3]
    assert len(public.gallery) == 4 and public.train is None
    assert public.gallery.image(0).mode == "RGB" and public.gallery.fingerprint
    assert "1 queries where 379" in caplog.text and "4 images in the index where 761757" in caplog.text
    private = benchmarks.create("gldv2", root=str(root), part="private")
    assert private.protocols["all"].positive[0].tolist() == [0]


def test_lists_as_spreadsheets_write_them(root):
    for name in ("index.csv", "retrieval_solution_v2.1.csv", "train.txt"):
        (root / name).write_text((root / name).read_text(), encoding="utf-8-sig")
    benchmark = benchmarks.create("gldv2", root=str(root), train_list=str(root / "train.txt"))
    assert benchmark.gallery.names[0] == "index/a/a/b/aab0.jpg" and benchmark.train.names[0] == "index/a/a/b/aab0.jpg"


@pytest.mark.parametrize("name", ["index.csv", "retrieval_solution_v2.1.csv"])
def test_an_id_twice_is_refused(root, name):
    lines = (root / name).read_text().splitlines()
    (root / name).write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(ValueError, match="has an id twice"):
        benchmarks.create("gldv2", root=str(root))


def test_training_images_without_what_is_left_out(root, caplog):
    benchmark = benchmarks.create("gldv2", root=str(root), train_list=str(root / "train.txt"), exclude_landmarks=(7, 9))
    assert benchmark.train.names == ["index/a/b/c/abc1.jpg"] and benchmark.train.labels.tolist() == [8]
    assert "no image of 9" in caplog.text


def test_what_is_left_out_has_to_be_numbers(root):
    with pytest.raises(ValueError, match="must be numbers of landmarks"):
        benchmarks.create("gldv2", root=str(root), train_list=str(root / "train.txt"), exclude_landmarks=("7",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a.jpg,1,2,3\n\n\nb.jpg,,2,3\n", "Line 4"),
        ("a.jpg,²,2,3\n".encode(), "Line 1"),
        (b"a.jpg," + 40 * b"9" + b",2,3\n", "Line 1"),
        ("à.jpg,1,2,3\n".encode("utf-16"), "is not a text in UTF-8"),
    ],
)
def test_a_damaged_training_list_is_reported(root, text, words):
    (root / "train.txt").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        read_list(root / "train.txt")


def test_map_at_100_by_hand():
    right = np.zeros((3, 120), dtype=bool)
    right[0, [0, 2]] = right[1, 99] = right[2, 100] = True
    found = MapAt(100)(right, np.zeros_like(right), np.array([2, 1, 1]))["mAP@100"]
    np.testing.assert_allclose(found, [(1 + 2 / 3) / 2, 1 / 100, 0])
    many = np.ones((1, 120), dtype=bool)
    assert MapAt(100)(many, ~many, np.array([500]))["mAP@100"] == 1  # over 100, not over 500


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("index.csv", None, "is missing. Get it from"),
        ("index.csv", "name\na\n", "has no columns id"),
        ("index.csv", "id\naab0\n", "get both files in one version"),
        ("retrieval_solution_v2.1.csv", "id,images\n", "has no columns Usage, id, images"),
    ],
)
def test_incomplete_lists_are_reported(root, file, text, words):
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        benchmarks.create("gldv2", root=str(root))
    with pytest.raises(ValueError, match="did you mean 'public'"):
        benchmarks.create("gldv2", root=str(root), part="pubic")
