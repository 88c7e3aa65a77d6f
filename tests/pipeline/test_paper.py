"""The paper's settings: what a dry run says of each, and one full-size step of each."""

import re

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from experiments._config import read_experiment
from experiments.run import main
from locore.descriptors.embedder import Embedder
from locore.pipeline.build import build_reranker
from locore.reranking import ListwiseReranker, Shortlist

DATA = ("sop", "cub", "inshop")
ROWS = {size: [f"gin/paper/longformer_{size}.gin"] for size in ("tiny", "small", "base")}
ROWS |= {name: [f"gin/{name}.gin", "gin/size/base.gin"] for name in ("rwkv", "mamba")}
RANDOM = "Model.language_model = None"
POSITIONS, LOCAL, GLOBAL = 5_120, 128, 512


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ResNet-50 as gin/paper/resnet50.gin trains it, at its starting weights."""
    path = tmp_path_factory.mktemp("resnet50") / "embedder.safetensors"
    Embedder("resnet50", 224, "avg+max", layer_norm=True, dim=GLOBAL, local_dim=LOCAL).save(path)
    return path


def block(width: int, inner: int) -> int:
    """A layer norm, four projections and a feed-forward behind its own norm."""
    return 2 * width + 4 * (width**2 + width) + 2 * width + width * inner + inner + inner * width + width


def encoder(name: str) -> tuple[int, int]:
    """Width and parameters of an encoder, by hand."""
    if name in ("tiny", "small", "base"):
        width, depth = {"tiny": (512, 4), "small": (768, 6), "base": (768, 12)}[name]
        return width, depth * (7 * (width**2 + width) + 8 * width**2 + 5 * width + 4 * width)
    width, depth = {"mamba": (768, 9), "rwkv": (768, 8)}[name]
    if name == "mamba":
        channels, state, taps, rank = 2 * width, 16, 4, 48
        each = channels * (taps + 1) + channels * (rank + 2 * state) + rank * channels + channels * (1 + state + 1)
        mixer = 2 * width + 3 * width * channels + 2 * each
    else:
        mixer = 4 * width + 5 * width + 4 * width**2 + 2 * width + 8 * width**2 + width**2
    return width, depth * (mixer + block(width, 4 * width)) + 2 * width


def embedding(width: int) -> int:
    """Projections of locals and globals, scales, SEP and PAD, positions (two rows unused), token type, norm; head."""
    projections = LOCAL + 1 + (GLOBAL + 1 if width != GLOBAL else 0)
    return (projections + 3 + 2 + POSITIONS + 2 + 1 + 2) * width + 2 * width + 2


def gin_files(data: str, row: str) -> list[str]:
    return [*ROWS[row], f"gin/paper/{data}.gin"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("data", DATA)
def test_a_dry_run_has_the_papers_layout_and_parameters(data, row, weights, capsys):
    arguments = [part for file in gin_files(data, row) for part in ("--gin", file)]
    assert main([*arguments, "--set", f"Extractor.weights = '{weights}'", "--set", RANDOM, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "Start of the weights: random" in printed and "Training.epochs = 5" in printed
    assert ("longformer.attention_dropout = 0.1" in printed) == (row not in ("rwkv", "mamba"))
    assert "101 images x 50 tokens = 5050 tokens" in printed
    width, parameters = encoder(row)
    assert int(re.search(r"Parameters: ([\d,]+)", printed)[1].replace(",", "")) == parameters + embedding(width)
    for line in ("Training.learning_rate = 5e-05", "Training.batch_size = 128", "Training.schedule = 'constant'"):
        assert line in printed


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_longformers_start_from_their_language_model(size, weights, tmp_path, capsys):
    arguments = [part for file in gin_files("sop", size) for part in ("--gin", file)]
    arguments += ["--set", f"Extractor.weights = '{weights}'", "--dry-run"]
    name = "roberta-tiny-cased" if size == "tiny" else "longformer-base-4096"
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"There is no language model in 'checkpoints/{name}'" in said and f"/{name} to this folder" in said
    if size == "tiny":  # the other is as large as the hub's
        config = RobertaConfig(hidden_size=512, num_attention_heads=8, num_hidden_layers=4, intermediate_size=2048)
        RobertaModel(config).save_pretrained(tmp_path / name)
        assert main([*arguments, "--set", f"Model.language_model = '{tmp_path / name}'"]) == 0
        assert f"Start of the weights: {name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_full_size_step(row, weights):
    experiment, _ = read_experiment(gin_files("sop", row), [f"Extractor.weights = '{weights}'", RANDOM], seed=0)
    model = build_reranker(experiment, seed=0).train()
    model.encoder.gradient_checkpointing = experiment.training.gradient_checkpointing
    shortlist = Shortlist.random(1, 100, 49, LOCAL, GLOBAL)
    labels = torch.randint(0, 2, (1, 100))
    loss = ListwiseReranker.loss(model(shortlist), labels)
    loss.backward()
    assert loss.isfinite() and all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
