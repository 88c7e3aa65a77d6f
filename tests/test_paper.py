"""The paper's settings: what a dry run says of each, and one full-size step of each."""

import re
from pathlib import Path

import pytest
import torch

from experiments.experiment import prepare
from experiments.run import main
from locore.descriptors.embedder import Embedder
from locore.reranking import ListwiseReranker, Shortlist

FILES = sorted(path.name for path in Path("gin/paper").glob("*_*.gin") if path.name != "metric_learning.gin")
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


@pytest.mark.parametrize("file", FILES)
def test_a_dry_run_has_the_papers_layout_and_parameters(file, weights, capsys):
    assert main(["--gin", f"gin/paper/{file}", "--set", f"Extractor.weights = '{weights}'", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "101 images x 50 tokens = 5050 tokens" in printed
    width, parameters = encoder(file.removesuffix(".gin").split("_")[1])
    assert int(re.search(r"Parameters: ([\d,]+)", printed)[1].replace(",", "")) == parameters + embedding(width)
    for line in ("Training.learning_rate = 5e-05", "Training.batch = 128", "Training.schedule = 'constant'"):
        assert line in printed


def test_every_data_set_has_every_row():
    assert (
        sorted(f"{d}_{r}.gin" for d in ("sop", "cub", "inshop") for r in ("tiny", "small", "base", "rwkv", "mamba"))
        == FILES
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", [name for name in FILES if name.startswith("sop")])
def test_a_full_size_step(file, weights, tmp_path):
    experiment, _ = prepare([f"gin/paper/{file}"], [f"Extractor.weights = '{weights}'"], seed=0)
    model = experiment.model(seed=0).train()
    model.encoder.gradient_checkpointing = experiment.training.gradient_checkpointing
    shortlist = Shortlist.random(1, 100, 49, LOCAL, GLOBAL)
    labels = torch.randint(0, 2, (1, 100))
    loss = ListwiseReranker.loss(model(shortlist), labels)
    loss.backward()
    assert loss.isfinite() and all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
