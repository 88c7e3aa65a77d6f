"""The README's examples are what a reader will type."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_inputs import write_glyphs

import locore
from backbones.conformance import check_backbone
from backbones.registry import backbones as registry
from experiments.run import main
from locore.checkpoints import native

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_backbone_is_short_conforms_and_runs(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_entries", {n: registry.entry(n) for n in registry.available()})
    (example,) = (block for block in BLOCKS if "@register" in block)
    assert len(example.splitlines()) < 40
    exec(compile(example, "README.md", "exec"), {"__name__": "readme_example"})
    check_backbone("summaries")
    assert main(["--gin", "gin/mamba.gin", "--set", "Model.backbone = 'summaries'", "--dry-run"]) == 0
    assert "275 tokens" in capsys.readouterr().out


def test_the_library_example_ranks_a_list(tmp_path, monkeypatch):
    (example,) = (block for block in BLOCKS if "locore.load" in block)
    model = locore.ListwiseReranker("mamba", local_dim=112, global_dim=1280, max_positions=275)
    trained = native.Trained(locore.Extractor(local_stage=3), 24)
    native.save(model, tmp_path / "runs" / "mamba" / "model.safetensors", trained)
    images = [Image.open(path) for path in sorted(write_glyphs(tmp_path / "x", 2, 4).rglob("*.png"))]
    monkeypatch.chdir(tmp_path)
    names = {"query_image": images[0], "candidate_images": images[1:]}
    exec(compile(example, "README.md", "exec"), names)
    assert sorted(names["ranking"].order[0].tolist()) == list(range(7))
    assert torch.isfinite(names["ranking"].scores).all()


def test_the_example_of_a_vector_database_re_ranks_what_it_found(tmp_path, monkeypatch):
    (example,) = (block for block in BLOCKS if "qdrant" in block)
    extractor = locore.Extractor(local_stage=3)
    model = locore.ListwiseReranker("mamba", local_dim=112, global_dim=1280, max_positions=275)
    folder = tmp_path / "runs" / "mamba"
    native.save(model, folder / "model.safetensors", native.Trained(extractor, 24))
    query, *paths = map(str, sorted(write_glyphs(tmp_path / "x", 2, 4).rglob("*.png")))
    Image.open(query).convert("RGB").save(tmp_path / "query.jpg")
    monkeypatch.chdir(tmp_path)
    names = {"paths": paths}
    exec(compile(example, "README.md", "exec"), names)
    described = extractor.describe([Image.open(path) for path in ["query.jpg", *paths]]).global_matrix
    nearest = (-(described[1:] @ described[0])).argsort(kind="stable")
    assert names["found"] == [paths[i] for i in nearest]
    assert names["best"] == [names["found"][h.index] for h in locore.rerank("query.jpg", names["found"], folder)]


def test_the_hits_example_re_ranks(tmp_path, monkeypatch, capsys):
    (example,) = (block for block in BLOCKS if "locore.rerank" in block and "qdrant" not in block)
    model = locore.ListwiseReranker("mamba", local_dim=112, global_dim=1280, max_positions=275)
    trained = native.Trained(locore.Extractor(local_stage=3), 24)
    native.save(model, tmp_path / "runs" / "mamba" / "model.safetensors", trained)
    paths = sorted(write_glyphs(tmp_path / "x", 2, 4).rglob("*.png"))
    for name, path in zip(("query", "first", "second", "third"), paths, strict=False):
        Image.open(path).convert("RGB").save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert sorted(json.loads(capsys.readouterr().out)) == [0, 1, 2]


def test_the_readmes_files_exist():
    for path in re.findall(r"\]\(((?:results|docs)/[^)]+)\)|--gin (gin/\S+\.gin)", README):
        assert (Path(__file__).parents[2] / "".join(path)).exists(), path


@pytest.mark.parametrize(
    "name", ["mamba", "rwkv", "longformer", "transformer", "pairwise", "query_attention", "list_attention"]
)
def test_every_gin_file_says_what_it_is(name):
    text = (Path(__file__).parents[2] / "gin" / f"{name}.gin").read_text()
    for word in ("# Reproduces:", "# Command: python -m experiments.run", "# Time and result:"):
        assert word in text
    assert "TIME-" not in text
