"""The page of several runs, in a browser."""

import json
import shutil

import numpy as np
import pytest
import torch
from small_inputs import QUICK, write_glyphs

import locore
from experiments import probe, report
from experiments._config import read_experiment
from experiments.run import main
from locore.pipeline.build import describe
from locore.probes.attribution import influence
from locore.reranking import Shortlist

METHODS = ("chamfer", "superglobal")
RUNS = (*METHODS, "listwise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    root = write_glyphs(folder / "images")
    for method in METHODS:
        lines = [line for line in [*QUICK, f"folder.path = '{root}'"] if "query_attention" not in line]
        arguments = [part for line in lines for part in ("--set", line)]
        assert main(["--gin", f"gin/peers/{method}.gin", *arguments, "--out", str(folder / method)]) == 0
    lines = [*QUICK, f"folder.path = '{root}'"]
    arguments = [part for line in lines for part in ("--set", line)]
    assert main(["--gin", "gin/query_attention.gin", *arguments, "--out", str(folder / "listwise")]) == 0
    assert report.main([*(str(folder / m) for m in RUNS), "--out", str(folder / "report.html")]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder, show):
    page = show(folder / "report.html")
    page.wait_for_selector("article.query")
    return page


@pytest.fixture
def opened(page):
    """The page as it opens."""
    yield page
    page.set_viewport_size({"width": 1280, "height": 720})
    page.locator("#find").fill("")
    page.locator("#run").select_option("0")
    page.locator("#sort").select_option("gain")


def measured(folder, method):
    return json.loads((folder / method / "metrics.json").read_text())


def test_the_table_sorts(folder, opened):
    values = {method: measured(folder, method)["reranked"]["mAP@R"] for method in RUNS}
    assert values["chamfer"] != values["superglobal"]
    header = opened.get_by_role("button", name="mAP@R")

    def order():
        cells = opened.locator("#summary tbody tr:not(.reference) td:first-child").all_inner_texts()
        return [values[name] for name in cells]

    header.click()
    assert order() == sorted(values.values(), reverse=True)
    header.press("Enter")  # by the keyboard as well
    assert order() == sorted(values.values())
    row = opened.locator("#summary tbody tr", has_text="chamfer").inner_text()
    assert f"{values['chamfer']:.1f}" in row


def test_queries_are_found_and_sorted_by_their_gain(folder, opened):
    assert opened.locator("article.query").count() == 20
    gains = [float(text.replace("−", "-")) for text in opened.locator("article .up, article .down").all_inner_texts()]
    assert gains == sorted(gains, reverse=True)
    opened.locator("#sort").select_option("loss")
    gains = [float(text.replace("−", "-")) for text in opened.locator("article .up, article .down").all_inner_texts()]
    assert gains == sorted(gains)
    opened.get_by_role("button", name="show more").click()
    assert opened.locator("article.query").count() == 40
    name = opened.locator(".asked").first.inner_text().split(",")[0]
    opened.locator("#find").fill(name)
    assert {text.split(",")[0] for text in opened.locator(".asked").all_inner_texts()} == {name}


def test_a_candidate_opens_with_its_score_and_places(folder, opened):
    opened.locator("#sort").select_option("name")
    after = opened.locator("article.query").first.locator(".list").nth(1).locator(".hit")
    with np.load(folder / "chamfer" / "rankings.npz") as lists:
        protocol = next(iter(lists)).split("/")[0]
        found = {name.split("/")[1]: lists[name] for name in lists.files}
    name = opened.locator(".asked").first.inner_text().split(",")[0]
    with open(folder / "chamfer" / "queries.csv") as file:
        row = [line.split(",")[1] for line in file][1:].index(name)
    assert protocol and after.count() == 8
    place = int(found["order"][row, 0])
    after.first.focus()
    after.first.press("Enter")
    dialog = opened.get_by_role("dialog")
    text = dialog.inner_text()
    assert f"place before\n{place + 1}" in text.replace("\n\n", "\n") and f"{found['scores'][row, place]:.3f}" in text
    kind = "right" if found["right"][row, place] else "wrong"
    assert kind in text
    opened.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_charts_are_drawn_and_the_theme_turns(opened):
    for chart in ("pareto", "curves", "scatter"):
        assert opened.locator(f"#{chart} svg.main-svg").count() > 0
    assert opened.locator("#pareto").inner_text().count("superglobal") == 1
    colours = []
    for _ in range(2):
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.locator("#theme").click()
    assert colours[0] != colours[1]
    opened.set_viewport_size({"width": 360, "height": 700})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_benchmarks_and_protocols_are_chosen_and_probes_are_shown(folder, show, tmp_path, capsys):
    world = [f"posters.{n} = {v}" for n, v in {"walls": 9, "views": 16, "queries": 12, "distractors": 5}.items()]
    lines = [line for line in QUICK if not line.startswith("Data.")]
    lines += [*world, "Data.benchmark = 'posters'", "Extractor.grid_size = 4", "Reranking.ensemble = False"]
    arguments = [part for line in lines for part in ("--set", line)]
    walls = tmp_path / "walls"
    assert main(["--gin", "gin/query_attention.gin", *arguments, "--out", str(walls)]) == 0
    assert probe.main([str(walls), "--queries", "4", "--orders", "3", "--out", str(tmp_path / "probes")]) == 0
    of = [str(folder / "listwise"), str(walls), "--explained", "0", "--out", str(tmp_path / "page.html")]
    assert report.main([*of, "--probes", str(tmp_path / "probes")]) == 0
    page = show(tmp_path / "page.html")
    assert page.locator("#summary tbody tr:not(.reference) td:first-child").all_inner_texts() == ["listwise"]
    page.locator("#benchmark").select_option("1")
    assert page.locator("#summary tbody tr:not(.reference) td:first-child").all_inner_texts() == ["walls"]
    metrics = json.loads((walls / "metrics.json").read_text())["protocols"]
    assert len(metrics) > 2
    for protocol, values in metrics.items():
        page.locator("#protocol").select_option(protocol)
        shown = page.locator("#summary tbody tr.reference").first.locator("td").nth(3).inner_text()
        assert float(shown) == pytest.approx(values["global"]["mAP"], abs=0.051)
        assert page.locator("article.query").count() == min(20, values["queries"])
    found = json.loads((tmp_path / "probes" / "probe.json").read_text())["runs"]["walls"]
    gain = page.locator("#probes tbody tr").first.locator("td").nth(1 + list(found).index("transitivity gain"))
    assert float(gain.inner_text().split(" [")[0]) == pytest.approx(found["transitivity gain"]["mean"], abs=0.0051)
    assert page.evaluate("document.getElementById('links').naturalWidth") > 500
    (tmp_path / "probes" / "probe.json").write_text('{"runs": {"walls": {"x": {}}}}')
    assert report.main([*of, "--probes", str(tmp_path / "probes")]) == 2
    assert "probe.json' is damaged" in capsys.readouterr().err
    assert report.main([*of, "--probes", str(tmp_path)]) == 2
    assert "has no probe.json" in capsys.readouterr().err


def test_what_cannot_be_shown_is_reported(folder, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "has no metrics.json" in capsys.readouterr().err
    shutil.copytree(folder / "chamfer", tmp_path / "chamfer")
    assert report.main([str(folder / "chamfer"), str(tmp_path / "chamfer")]) == 2
    assert "same name" in capsys.readouterr().err
    photo = next((folder / "images").rglob("*.png"))
    kept = photo.read_bytes()
    assert report.main([str(folder / "chamfer"), "--out", str(photo)]) == 2
    assert "is not a page" in capsys.readouterr().err and photo.read_bytes() == kept
    for damage in ({}, [], {"protocols": {}}):
        (tmp_path / "chamfer" / "metrics.json").write_text(json.dumps(damage))
        assert report.main([str(tmp_path / "chamfer"), "--out", str(tmp_path / "page.html")]) == 2
        assert "error: " in capsys.readouterr().err
    shutil.copytree(folder / "listwise", tmp_path / "listwise")
    metrics = (tmp_path / "listwise" / "queries.csv").read_text()
    (tmp_path / "listwise" / "queries.csv").write_text(metrics.replace("reranked ", "again ", 1).replace("mAP@R", "AP"))
    assert report.main([str(tmp_path / "listwise"), "--out", str(tmp_path / "page.html")]) == 2
    assert "do not belong together" in capsys.readouterr().err
    (tmp_path / "chamfer" / "rankings.npz").write_bytes(b"damaged")
    assert report.main([str(tmp_path / "chamfer"), "--out", str(tmp_path / "page.html")]) == 2
    assert "cannot be read" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_odd_names_are_shown_and_changed_images_are_reported(show, tmp_path, capsys):
    root = write_glyphs(tmp_path / "images", classes=8)
    for number, path in enumerate(sorted(root.iterdir())[-3:]):
        path.rename(root / ("zz<!--<script>", "zy \"quoted\" & 'so'", "zx < b")[number])
    lines = [line for line in [*QUICK, f"folder.path = '{root}'"] if "query_attention" not in line]
    arguments = [part for line in lines for part in ("--set", line)]
    assert main(["--gin", "gin/peers/chamfer.gin", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    page = show(tmp_path / "page.html")
    page.wait_for_selector("article.query")
    assert any("zz<!--<script>" in text for text in page.locator(".asked").all_inner_texts())
    next(root.rglob("*.png")).unlink()
    changed = sorted(root.iterdir())[-1]
    (changed / "new.png").write_bytes(next(changed.glob("*.png")).read_bytes())
    capsys.readouterr()
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 2
    assert "have changed since" in capsys.readouterr().err


def test_what_moved_a_score_is_shown(folder, opened):
    listwise = str(RUNS.index("listwise"))
    opened.locator("#run").select_option(listwise)
    first = opened.locator("article.query").first  # of those that gain most
    first.locator(".list").nth(1).locator(".hit").nth(1).click()
    name = first.locator(".asked").inner_text().split(",")[0]
    moved = opened.evaluate(
        "([name, run]) => { const p = benchmark.protocols[protocol];"
        " return p.queries.find((q) => q.name === name).explained[run][1]; }",
        [name, int(listwise)],
    )
    with open(folder / "listwise" / "queries.csv") as file:
        row = [line.split(",")[1] for line in file][1:].index(name)
    experiment, _ = read_experiment([str(folder / "listwise" / "config.gin")], [], 0)
    benchmark = experiment.data.load()
    queries, gallery = (describe(experiment, images)[0] for images in (benchmark.queries, benchmark.gallery))
    with np.load(folder / "listwise" / "rankings.npz") as lists:
        found = {key.split("/")[1]: lists[key] for key in lists.files}
    listed = found["indices"][row][found["order"][row].astype(int)]
    lists = Shortlist.gather(
        queries, torch.tensor([found["rows"][row]]), gallery, torch.from_numpy(listed)[None].long()
    )
    values = influence(locore.load(folder / "listwise"), lists, 1)[0]
    own = torch.cat([values[0, 1:-1], values[2, 1:-1]])
    wanted = (100 * own / own.abs().max()).round().tolist()
    assert [cell[2] for which in ("query", "candidate") for cell in moved[which]] == pytest.approx(wanted, abs=1)
    sums = values.sum(1)
    assert [image[0] for image in moved["images"][:2]] == [0, 2]
    assert moved["images"][1][1] == pytest.approx(float(100 * sums[2] / sums.abs().max()), abs=1)
    dialog = opened.get_by_role("dialog")
    assert dialog.locator(".seen i").count() == len(own) == 8
    assert dialog.locator(".bars b").count() == len(moved["images"]) == 6
    opened.keyboard.press("Escape")
    opened.locator("#run").select_option("0")
    opened.locator("article.query").first.locator(".list").nth(1).locator(".hit").first.click()
    assert dialog.locator(".seen i").count() == 0 and not opened.locator("#moved").is_visible()
