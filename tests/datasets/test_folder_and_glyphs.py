"""Benchmarks: glyphs, folders and zips, and what is wrong with them said in one sentence."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_inputs import write_glyphs

import locore
from locore.datasets import Benchmark, benchmarks
from locore.datasets._images import FileImages
from locore.datasets.benchmark import Joined
from locore.datasets.posters import Camera
from locore.descriptors import Extractor
from locore.descriptors.image_cache import describe_cached

EMOJI = Path(__file__).parents[2] / "shared" / "data" / "emoji.zip"


def test_glyphs_are_what_they_should_be():
    benchmark = benchmarks.create("glyphs", max_queries=50)
    train, test = benchmark.train, benchmark.gallery
    assert not set(train.labels) & set(test.labels)
    assert 25_000 < len(train) + len(test) < 30_000
    every = np.concatenate([train.pixels, test.pixels])
    assert len({image.tobytes() for image in every}) == len(every)
    assert not any(name.split()[1].startswith(("LastResort", "cm")) for name in train.names + test.names)
    labels = [*train.labels, *test.labels]
    merged = {name.split()[0]: label for name, label in zip(train.names + test.names, labels, strict=True)}
    same = [merged[c] for c in ("U+0041", "U+0391", "U+0410") if c in merged]  # A, Alpha, A of Cyrillic
    assert len(set(same)) == 1
    assert len(benchmark.queries) == 50 and benchmark.queries.image(0).mode == "RGB"
    answers = benchmark.protocols["all"]
    for row, own in enumerate(benchmark.self_index):
        assert set(answers.positive[row]) == set(np.flatnonzero(test.labels == test.labels[own])) - {own}


def test_max_classes_draws_fewer():
    benchmark = benchmarks.create("glyphs", max_classes=10)
    assert len(set(benchmark.train.labels)) == len(set(benchmark.gallery.labels)) == 5
    with pytest.raises(ValueError, match=r"glyphs\.max_classes"):
        benchmarks.create("glyphs", max_classes=3)


def test_a_folder_and_its_zip_are_the_same_benchmark(tmp_path):
    root = write_glyphs(tmp_path / "images", classes=6, images=3)
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*.png"):
            file.write(path, path.relative_to(tmp_path))
        file.writestr("__MACOSX/images/._a.png", b"not an image")
        file.writestr("cover.png", b"not of a class")
    one, other = benchmarks.create("folder", path=str(root)), benchmarks.create("folder", path=str(archive))
    assert len(one.train) == len(other.train) == 9
    assert (one.train.labels == other.train.labels).all()
    assert one.gallery.image(4).tobytes() == other.gallery.image(4).tobytes()


def test_a_changed_image_changes_the_fingerprint(tmp_path):
    root = write_glyphs(tmp_path, classes=6, images=3)
    before = benchmarks.create("folder", path=str(root)).train.fingerprint
    Image.new("RGB", (9, 9)).save(next(iter(sorted(root.rglob("*.png")))))
    assert benchmarks.create("folder", path=str(root)).train.fingerprint != before


def test_a_photo_of_a_turned_phone_is_upright_everywhere(tmp_path):
    upright = Camera(0, 3, 0).render().resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    (tmp_path / "c").mkdir()
    upright.save(tmp_path / "c" / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "c" / "b.png", exif=exif)
    images = FileImages(tmp_path, ["c/a.png", "c/b.png"], np.zeros(2))
    assert np.array_equal(images.image(0), images.image(1))
    extractor = Extractor(image_size=64)
    as_given = extractor.describe([Image.open(tmp_path / "c" / name) for name in ("a.png", "b.png")])
    by_path = describe_cached({n: tmp_path / "c" / f"{n}.png" for n in "ab"}, extractor)
    for described in (extractor.extract(images), as_given, by_path):
        assert torch.equal(described.global_descriptor[0], described.global_descriptor[1])
    locore.rerank(Image.open(tmp_path / "c" / "b.png"), [tmp_path / "c" / "a.png"])


def test_transparent_and_grey_images_come_as_rgb_on_white(tmp_path):
    root = write_glyphs(tmp_path, classes=6, images=3)
    first = sorted(root.rglob("*.png"))[:3]
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(first[0])
    Image.new("L", (8, 8), 7).save(first[1])
    Image.new("CMYK", (8, 8)).save(first[2].with_suffix(".jpg"))
    train = benchmarks.create("folder", path=str(root)).train
    assert {train.image(i).mode for i in range(4)} == {"RGB"}
    assert train.image(0).getpixel((0, 0)) == (255, 255, 255)


def test_folders_of_one_name_in_train_and_val_are_one_class(tmp_path, caplog):
    root = write_glyphs(tmp_path / "train", classes=4, images=4)
    for path in sorted(root.rglob("*.png"))[::2]:
        moved = tmp_path / "val" / path.relative_to(root)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    benchmark = benchmarks.create("folder", path=str(tmp_path))
    assert "train, val" in caplog.text and np.bincount(benchmark.gallery.labels).tolist() == [0, 0, 4, 4]
    classes = [{name.split("/")[1] for name in part.names} for part in (benchmark.train, benchmark.gallery)]
    assert not classes[0] & classes[1]


def test_kinds_of_photographs_are_read_or_named_and_links_are_followed(tmp_path, caplog):
    root = write_glyphs(tmp_path / "images", classes=6, images=3)
    elsewhere = write_glyphs(tmp_path / "elsewhere", classes=6, images=3)
    first = min(root.rglob("*.png"))
    for suffix, kind in (("avif", "AVIF"), ("jp2", "JPEG2000"), ("jfif", "JPEG")):
        Image.open(first).convert("RGB").save(first.with_suffix(f".{suffix}"), kind)
    first.with_suffix(".HEIC").write_bytes(b"a photograph of a phone")
    (root / "linked").symlink_to(sorted(elsewhere.iterdir())[0])
    (root / "circle").symlink_to(root)
    benchmark = benchmarks.create("folder", path=str(root))
    train, names = benchmark.train, [*benchmark.train.names, *benchmark.gallery.names]
    assert len(names) == len(set(names)) == 6 * 3 + 3 + 3 and sum(name.startswith("linked/") for name in names) == 3
    assert "1 photographs" in caplog.text and ".HEIC" in caplog.text and "save them as JPEG" in caplog.text
    assert all(train.image(row).mode == "RGB" for row in range(len(train)))


def test_wrong_folders_are_reported(tmp_path):
    with pytest.raises(ValueError, match="There is no folder or zip"):
        benchmarks.create("folder", path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="0 images in 0 sub-folders"):
        benchmarks.create("folder", path=str(tmp_path))
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="neither a folder nor a readable zip"):
        benchmarks.create("folder", path=str(tmp_path / "x.zip"))
    root = write_glyphs(tmp_path / "images", classes=6, images=3)
    broken = sorted(root.rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=broken.name):
        benchmarks.create("folder", path=str(root)).train.image(0)
    with pytest.raises(ValueError, match="did you mean 'glyphs'"):
        benchmarks.create("glyph")


@pytest.mark.skipif(not EMOJI.exists(), reason=f"{EMOJI} is not on this machine")
def test_emoji_halves():
    benchmark = benchmarks.create("folder", path=str(EMOJI))
    assert isinstance(benchmark, Benchmark)
    assert len(benchmark.train) + len(benchmark.gallery) == 11_670
    assert len(set(benchmark.train.labels)) + len(set(benchmark.gallery.labels)) == 1_659


def test_a_box_outside_of_its_image_is_refused(tmp_path):
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    boxes = np.array([[5, 5, 99, 99], [10, 0, 20, 8]])
    images = FileImages(tmp_path, ["a.png", "a.png"], np.zeros(2), boxes=boxes)
    assert images.image(0).size == (94, 94)
    with pytest.raises(ValueError, match="is outside its 10 × 8 pixels"):
        images.image(1)


def test_a_changed_image_changes_what_is_known_of_it_alone(tmp_path):
    def known():
        files = FileImages(tmp_path, names, np.zeros(4), boxes=np.tile([0, 0, 2, 2], (4, 1)))
        behind = Joined(files.subset(np.array([3, 2])), files)
        return [behind.fingerprint_of(np.array(rows)) for rows in ([0, 1], [1, 2], [2, 3], [4, 5], [2, 5])]

    names = [f"{i}.png" for i in range(4)]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    before = known()
    Image.new("RGB", (5, 4)).save(tmp_path / "3.png")
    assert [one == other for one, other in zip(before, known(), strict=True)] == [False, True, True, False, False]
    assert len(set(before)) == 5
