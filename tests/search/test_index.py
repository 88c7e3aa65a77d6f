"""Photos of a folder: indexed once, searched, re-ranked, shown."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_inputs import QUICK, write_glyphs

import locore
from experiments import run, search
from locore.descriptors import Extractor
from locore.descriptors.image_cache import open_image
from locore.probes.attribution import influence
from locore.reranking import Shortlist
from locore.search.index import index

SMALL = Extractor(image_size=32, local_stage=3, grid_size=2)


@pytest.fixture
def photos(tmp_path):
    return write_glyphs(tmp_path / "photos", classes=6, images=4)


def test_an_index_grows_by_what_is_new(photos, monkeypatch):
    described, describe = [], Extractor.describe
    monkeypatch.setattr(Extractor, "describe", lambda self, images: describe(self, described.extend(images) or images))
    first = index(photos, SMALL)
    assert len(first.names) == len(described) == 24 and first.names == sorted(first.names)
    again = index(photos, SMALL)
    assert len(described) == 24 and again.names == first.names
    np.testing.assert_array_equal(again.descriptors.local, first.descriptors.local)
    path = photos / first.names[0]
    Image.open(path).rotate(90).save(photos / "added.png")
    path.unlink()
    changed = photos / first.names[1]
    Image.open(changed).rotate(180).save(changed)
    (photos / "broken.jpg").write_bytes(b"no image")
    grown = index(photos, SMALL)
    assert len(described) == 26 and set(grown.names) == {"added.png", *first.names[1:]}
    assert list(grown.unreadable) == ["broken.jpg"] and "Cannot read" in grown.unreadable["broken.jpg"]
    row = grown.names.index(first.names[2])
    np.testing.assert_array_equal(grown.descriptors.local[row], first.descriptors.local[2])


def test_a_photo_finds_itself_and_the_page_shows_the_list(photos, tmp_path, capsys):
    query = sorted(photos.rglob("*.png"))[5]
    page = tmp_path / "found.html"
    arguments = ["--index", str(photos), "--query", str(query), "--top", "5", "--page", str(page)]
    (photos / "broken.jpg").write_bytes(b"no image")
    assert search.main(arguments) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[1] == query.relative_to(photos).as_posix() and len(lines) == 6
    assert "left out: broken.jpg" in said.err
    text = page.read_text()
    assert text.count('"data":"UklGR') == 6 and not re.search(r"https?://", text)
    width, height = Image.open(query).size
    assert search.main([*arguments, "--crop", "0", "0", str(width // 2), str(height)]) == 0
    assert capsys.readouterr().out.splitlines()[:5] != lines[:5]


def test_a_click_on_a_photo_shows_what_moved_its_score(photos, tmp_path, show, capsys):
    lines = [*QUICK, f"folder.path = '{write_glyphs(tmp_path / 'trained')}'", "Reranking.ensemble = False"]
    arguments = [part for line in lines for part in ("--set", line)]
    model = tmp_path / "listwise"
    assert run.main(["--gin", "gin/query_attention.gin", *arguments, "--out", str(model)]) == 0
    query = sorted(photos.rglob("*.png"))[5]
    asked = ["--index", str(photos), "--query", str(query), "--reranker", str(model), "--candidates", "6"]
    capsys.readouterr()
    assert search.main([*asked, "--explained", "3", "--page", str(tmp_path / "found.html")]) == 0
    names = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:6]]
    page = show(tmp_path / "found.html")
    hits, dialog = page.locator(".hit"), page.get_by_role("dialog")
    assert [text.split()[1] for text in hits.all_inner_texts()] == names
    hits.nth(1).focus()
    hits.nth(1).press("Enter")
    extractor = locore.trained_on(model).extractor
    read = extractor.describe([open_image(path) for path in (query, *(photos / name for name in names))])
    listed = Shortlist.gather(read, torch.tensor([0]), read, torch.arange(1, 7)[None])
    values = influence(locore.load(model), listed, 1)[0]
    sums = (100 * values.sum(1) / values.sum(1).abs().max()).tolist()
    widths = dialog.locator(".bars b").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
    assert widths[:2] == pytest.approx([abs(sums[0]), abs(sums[2])], abs=1) and len(widths) == 6
    assert dialog.locator(".seen i").count() == 8 and names[1] in dialog.inner_text()
    page.keyboard.press("Escape")
    hits.nth(4).click()
    assert dialog.locator(".seen i").count() == 0 and not page.locator("#moved").is_visible()
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--index", "none"], "There is no folder of photos"),
        (["--query", "none.png"], "Cannot read the image"),
        (["--crop", "5", "5", "2", "9"], "not inside the query"),
        (["--reranker", "chamfr"], "did you mean 'chamfer'"),
        (["--top", "0"], "1 or more"),
    ],
)
def test_what_is_wrong_is_reported(photos, tmp_path, capsys, more, words):
    query = next(photos.rglob("*.png"))
    arguments = ["--index", str(photos), "--query", str(query), "--page", str(tmp_path / "p.html"), *more]
    assert search.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_damaged_index_is_made_anew(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCORE_CACHE", str(tmp_path / "cache"))
    first = index(photos, SMALL)
    (file,) = (tmp_path / "cache" / "indexes").iterdir()
    whole = file.read_bytes()
    for place in (4, 8, 30, len(whole) // 2, len(whole) - 20):  # version, method, name, data, directory
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        again = index(photos, SMALL)
        assert again.names == first.names
        np.testing.assert_array_equal(again.descriptors.local, first.descriptors.local)


def test_photos_of_other_depths_and_turned_ones_are_read(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    eight = np.asarray(open_image(tmp_path / "deep.png"))
    np.testing.assert_allclose(eight[..., 0], ramp / 257, atol=1)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        open_image(tmp_path / "float.tiff")
    picture, exif = Image.new("RGB", (20, 10), "red"), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (10, 20)
