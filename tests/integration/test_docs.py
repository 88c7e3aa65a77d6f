"""README, docs, results and examples: their code runs, their commands and links are real."""

import csv
import re
import runpy
import sys
from pathlib import Path

import pytest
from documented_commands import command_lines, problems
from PIL import Image
from small_inputs import write_glyphs

import locore
from backbones.registry import backbones
from locore.checkpoints import native

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("gin/*.md")])
RESULTS = sorted((ROOT / "results").rglob("README.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """What the pages speak of: photos with classes, a list of them, a query, and a run folder."""
    folder = tmp_path_factory.mktemp("docs")
    images = sorted(write_glyphs(folder / "photos", 8, 5).rglob("*.png"))
    for given, path in zip(("query", "first", "second", "third"), images, strict=False):
        Image.open(path).convert("RGB").save(folder / f"{given}.jpg")
    with open(folder / "photos" / "list.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "class", "split"])
        for number, path in enumerate(images):
            relative = path.relative_to(folder / "photos")
            lines.writerow([relative, relative.parent, "train" if number < len(images) // 2 else "test"])
    model = locore.ListwiseReranker("mamba", local_dim=112, global_dim=1280, max_positions=275)
    native.save(model, folder / "runs/mamba/model.safetensors", native.Trained(locore.Extractor(local_stage=3), 24))
    return folder


@pytest.fixture
def place(photos, monkeypatch):
    """The folder of the pages, and registries that forget afterwards what a page registers."""
    for registry in (backbones, locore.rerankers, locore.benchmarks):
        monkeypatch.setattr(registry, "_entries", {n: registry.entry(n) for n in registry.available()})
    monkeypatch.chdir(photos)
    return photos


@pytest.mark.parametrize("path", [path for path in PAGES if code_blocks(path)], ids=name)
def test_the_code_of_a_page_runs(path, place):
    names = {"__name__": "page", "paths": sorted(map(str, (place / "photos").rglob("*.png")))[:6]}
    for number, block in enumerate(code_blocks(path)):
        exec(compile(block, f"{name(path)}, block {number}", "exec"), names)
    if "best" in names and "points" in names:  # a vector database: the search's order, re-ranked
        assert sorted(names["best"]) == sorted(names["found"])
    if "ranking" in names:
        assert sorted(names["ranking"].order[0].tolist()) == list(range(6))


def test_the_readmes_backbone_is_short():
    (block,) = (block for block in code_blocks(ROOT / "README.md") if "@register" in block)
    assert len(block[block.index("@register") :].strip().splitlines()) <= 12


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_an_example_runs(path, place, monkeypatch, capsys):
    arguments = {
        "rerank_photos": ["query.jpg", "first.jpg", "second.jpg", "third.jpg"],
        "vector_database": ["photos", "query.jpg", "--limit", "5"],
        "train": ["photos", "--steps", "2", "--candidates", "4", "--out", "runs/example"],
        "own_backbone": [],
    }[path.stem]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    shown = {"rerank_photos": "  1  ", "vector_database": "photos/", "train": "oracle", "own_backbone": "The encoder"}
    assert any(line.startswith(shown[path.stem]) for line in printed)


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=name)
def test_commands_and_links_of_a_page_are_real(path):
    text = path.read_text()
    own = re.findall(r"register\(\"(\w+)\"", text)
    wrong = {line: found for line in command_lines(text) if (found := problems(line, own))}
    assert not wrong
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" in link:
            continue
        in_docs = path.is_relative_to(ROOT / "docs")
        target = path.parent / link
        if in_docs and (ROOT / "docs" / "results") in target.resolve().parents and not target.exists():
            target = ROOT / target.resolve().relative_to(ROOT / "docs")  # results/ is copied into the site
        assert target.exists(), f"{name(path)}: {link}"


def test_the_readme_fits_three_minutes():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


def test_the_tree_of_the_readme_is_the_tree():
    tree = re.search(r"```\n(backbones/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    parent = None
    for line in tree.splitlines():
        entry = line.split()[0]
        parent, path = (parent, parent / entry) if line.startswith(" ") else (ROOT / entry, ROOT / entry)
        assert path.exists(), line
    shown = {line.split()[0].strip("/") for line in tree.splitlines() if line.startswith(" ")}
    parts = {
        p.name for p in (ROOT / "locore").iterdir() if (p.is_dir() or p.name == "retrieval.py") and p.name[0] != "_"
    }
    assert parts <= shown


def test_the_results_fit_in_a_hand():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert len(files) <= 60 and sum(path.stat().st_size for path in files) <= 4_000_000
    for board in (path for path in (ROOT / "results").iterdir() if path.is_dir()):
        # A comparison with --rates keeps its trials and curves as well.
        held = {path.name for path in board.iterdir()} - {"rates.csv", "curves.csv"}
        assert held == {"README.md", "table.md", "table.csv", "table.png", "runs.csv", "queries.npz"}, board.name
        assert len((board / "README.md").read_text().splitlines()) <= 50, f"{board.name}: more than a screen"


def test_nothing_points_outside_the_repository():
    files = [*PAGES, *RESULTS, *EXAMPLES, *ROOT.glob("gin/**/*.gin"), ROOT / "pyproject.toml", ROOT / "mkdocs.yml"]
    outside = [name(path) for path in files if re.search(r"\.\./shared|/work/|/home/", path.read_text())]
    assert not outside


def test_every_page_is_in_the_navigation():
    shown = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written <= shown
