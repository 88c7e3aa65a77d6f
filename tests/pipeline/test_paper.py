"""The paper's settings: what a dry run says of each, and one full-size step of each."""

import re

import pytest
import torch

from experiments._config import read_experiment
from experiments.run import main
from locore.descriptors.embedder import Embedder
from locore.pipeline.build import build_reranker
from locore.reranking import ListwiseReranker, Shortlist

DATA = ("sop", "cub", "inshop")
ROWS = {"tiny": ("longformer", "tiny"), "small": ("longformer", "small"), "base": ("longformer", "base")}
ROWS |= {"rwkv": ("rwkv", "base"), "mamba": ("mamba", "base")}
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
    backbone, size = ROWS[row]
    return [f"gin/{backbone}.gin", f"gin/size/{size}.gin", f"gin/paper/{data}.gin"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("data", DATA)
def test_a_dry_run_has_the_papers_layout_and_parameters(data, row, weights, capsys):
    arguments = [part for file in gin_files(data, row) for part in ("--gin", file)]
    assert main([*arguments, "--set", f"Extractor.weights = '{weights}'", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "101 images x 50 tokens = 5050 tokens" in printed
    width, parameters = encoder(row)
    assert int(re.search(r"Parameters: ([\d,]+)", printed)[1].replace(",", "")) == parameters + embedding(width)
    for line in ("Training.learning_rate = 5e-05", "Training.batch_size = 128", "Training.schedule = 'constant'"):
        assert line in printed


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_full_size_step(row, weights):
    experiment, _ = read_experiment(gin_files("sop", row), [f"Extractor.weights = '{weights}'"], seed=0)
    model = build_reranker(experiment, seed=0).train()
    model.encoder.gradient_checkpointing = experiment.training.gradient_checkpointing
    shortlist = Shortlist.random(1, 100, 49, LOCAL, GLOBAL)
    labels = torch.randint(0, 2, (1, 100))
    loss = ListwiseReranker.loss(model(shortlist), labels)
    loss.backward()
    assert loss.isfinite() and all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
