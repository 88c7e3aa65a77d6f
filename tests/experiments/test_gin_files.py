"""Every gin file says what it is, its commands and settings are real, and gin/README.md is the map of all of them."""

import re
from pathlib import Path

import gin
import pytest
from documented_commands import ROOT, command_lines, problems

from experiments import _config

FILES = sorted((ROOT / "gin").rglob("*.gin"))
MAP = ROOT / "gin" / "README.md"
FOLDERS = {
    ".": ("Backbones", "One file a backbone, on `glyphs`; every other file mixes into these."),
    "peers": ("Other re-rankers", "Rivals, on the same descriptors and shortlists."),
    "data": ("Data", "What is searched."),
    "boards": (
        "Boards",
        "A benchmark with its protocol, on which rows are compared; `paper.csv` has published numbers.",
    ),
    "protocol": ("Protocols", "How many candidates are re-ranked, and in which windows."),
    "head": ("Heads", "How a list-wise re-ranker scores, and what its lists are; every mini backbone has `residual`."),
    "size": ("Sizes", "How large the encoder is."),
    "rate": ("Learning rates", "Mix into any row: `gin/longformer.gin+gin/rate/5e-4.gin`."),
    "sampling": ("Training lists", "What a step reads; mix into a row."),
    "start": (
        "Starts",
        "Weights that were pretrained on synthetic lists by `experiments.pretrain`, or how random ones start.",
    ),
    "embed": ("Global descriptors", "Losses for `experiments.embed`."),
    "extract": ("Extraction", "Vision models for `experiments.extract`."),
    "ablations/learner": ("Ablations: the learner", "One change of the training each."),
    "ablations/matching": ("Ablations: matching", "What tokens are told of how they match."),
    "ablations/kept": ("Ablations: kept local descriptors", "Quality against time."),
    "ablations/positions": ("Ablations: positions", "One position a token, an image, or none."),
    "ablations/table_c": ("Ablations: Table C", "More local descriptors of fewer images, or the reverse."),
    "paper": ("The paper's metric learning", "Data sets as the paper has them; mix after a backbone and a size."),
    "paper/landmarks": ("The paper's landmarks", "Tables B and C: a benchmark, what was extracted, the distractors."),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT / "gin").as_posix()


def header(path: Path) -> str:
    """The comment at the start of a file."""
    return re.match(r"(?:#.*\n)+", path.read_text())[0]


def first_sentence(path: Path) -> str:
    """What the header says first, without commands and without the kind of file, which its folder says."""
    text = re.split(r"# (?:Reproduces|Command|    )", header(path), maxsplit=1)[0]
    text = " ".join(line.lstrip("# ") for line in text.splitlines())
    text = re.sub(r"^(Data|Board|Protocol|Head|Size|Rate|Sampling|Start|Matching|Kept|The learner): ", "", text)
    return re.split(r"(?<!\bal)\. |[.:,]$|, by the first command:$", text.strip(), maxsplit=1)[0]


def drawn_map() -> str:
    lines = [
        "# Map of the gin files",
        "",
        "Files mix, and later ones win: a backbone, then data, size, protocol, rate.",
        "",
        "    python -m experiments.run --gin gin/rwkv.gin --gin gin/boards/posters.gin --gin gin/rate/5e-4.gin",
        "",
        "`--set 'Training.steps = 600'` sets one thing and wins over files. The header of a file has what it",
        "reproduces, its command, how long it takes and what came out. This page is made from the headers, by",
        "`python -m pytest tests/experiments/test_gin_files.py --update-map`.",
        "",
    ]
    for folder, (title, text) in FOLDERS.items():
        lines += [f"## {title}", "", text, "", "| file | what |", "|---|---|"]
        for path in (p for p in FILES if p.parent == ROOT / "gin" / folder):
            lines.append(f"| [{name(path)}]({name(path)}) | {first_sentence(path)} |")
        lines.append("")
    return "\n".join(lines)


def test_the_map_is_up_to_date(request):
    if request.config.getoption("--update-map"):
        MAP.write_text(drawn_map())
    assert MAP.read_text() == drawn_map(), "run pytest with --update-map"


def test_every_folder_is_on_the_map():
    assert {p.parent.relative_to(ROOT / "gin").as_posix() for p in FILES} == set(FOLDERS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_says_what_it_is(path):
    text = header(path)
    for word in ("# Command", "# Time and result:"):
        assert word in text, f"{name(path)} has no '{word}'"
    wrong = {line: found for line in command_lines(text) if (found := problems(line))}
    assert not wrong
    # The command of another file is named instead of repeated.
    assert "-m experiments." in text or "see " in text or "include it" in text


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_settings_of_a_file_are_known(path):
    _config._set_up()
    gin.clear_config()
    gin.parse_config_file(str(path), print_includes_and_imports=False)
