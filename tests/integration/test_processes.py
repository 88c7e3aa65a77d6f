"""Two processes at one job give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_inputs import QUICK, write_glyphs

from locore.descriptors import ames_files
from locore.utils import distributed

ONE = [sys.executable]
TWO = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]

GRADIENTS = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_lists import TRAINING, lists
from torch.optim.optimizer import register_optimizer_step_pre_hook

from locore.descriptors import ames_files
from locore.utils import distributed
from locore.descriptors import ames_files
from locore.reranking import ListwiseReranker
from locore.training.lists import fit_reranker

torch.manual_seed(0)
model = ListwiseReranker("mamba", 12, 20, max_positions=64, settings={"width": 32, "depth": 1, "heads": 2})
folder = Path(sys.argv[1])


def keep(*_):
    gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(gradients, folder / f"gradients{distributed.rank()}.safetensors")


register_optimizer_step_pre_hook(keep)
fit_reranker(model, lists(), TRAINING, lambda: {"mAP@R": 0.0}, folder, seed=3)
"""


EMBEDDER = """
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from locore.datasets import benchmarks
from locore.descriptors.embedder import Embedder
from locore.training.embedder import Finetuning
from locore.training.loop import Training
from locore.utils import distributed

folder, images, frozen = Path(sys.argv[1]), sys.argv[2], bool(int(sys.argv[3]))


def keep(optimizer, *_):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = {str(n): p.grad.contiguous() for n, p in enumerate(parameters) if p.grad is not None}
    save_file(gradients, folder / f"gradients{distributed.rank()}.safetensors")


register_optimizer_step_pre_hook(keep)
start = Embedder.pretrained("tf_efficientnet_lite0", "bundled", 32, "avg+max")
training = Training(steps=1, batch_size=8)
train = benchmarks.create("folder", path=images).train
Finetuning(freeze_backbone=frozen, horizontal_flip=True).fit(start, train, training, folder, seed=3)
"""

SHARED = """
import sys

from locore import retrieval
from locore.descriptors import shards
from locore.evaluation import search

shards.PART, retrieval.ROWS, retrieval.QUERIES = 8, 20, int(sys.argv[1])  # so that there is something to share
if retrieval.QUERIES == 9:  # rankings that are kept once
    retrieval.SORTED = search.SORTED = 15

from experiments import embed, extract, run

sys.exit({"run": run, "extract": extract, "embed": embed}[sys.argv[2]].main(sys.argv[3:]))
"""


def launched(by: list[str], *arguments, cache: Path) -> str:
    """What is printed by Python with these arguments, run by one process or by two."""
    done = subprocess.run(
        [*by, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "LOCORE_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": "tests/helpers:.",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folders(tmp_path):
    return [tmp_path / "one", tmp_path / "two"]


@pytest.mark.slow
def test_gradients_are_averaged_to_those_of_one_process(tmp_path, folders):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    for by, folder in zip((ONE, TWO), folders, strict=True):
        folder.mkdir()
        launched(by, tmp_path / "gradients.py", folder, cache=tmp_path)
    one, two, other = (
        load_file(f / f"gradients{n}.safetensors") for f, n in zip([*folders, folders[1]], (0, 0, 1), strict=True)
    )
    assert len(one) > 20 and max(float(np.abs(gradient).max()) for gradient in one.values()) > 1e-3
    for name, gradient in one.items():
        np.testing.assert_allclose(two[name], gradient, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(two[name], other[name])


WINDOWS = [
    "Reranking.candidates = 12",
    "Reranking.window = 6",
    "Reranking.ensemble = True",
    "Reranking.gate = 'chosen'",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("queries", "more"), [(8, []), (1024, []), (9, []), (8, WINDOWS)]
)  # by queries, by gallery, once
def test_a_run_ends_with_the_table_of_one_process(tmp_path, folders, queries, more):
    images = write_glyphs(tmp_path / "images")
    lines = [*QUICK, "Training.steps = 2", "Extractor.batch_size = 4", f"folder.path = '{images}'", *more]
    sets = [part for line in lines for part in ("--set", line)]
    (tmp_path / "shared.py").write_text(SHARED)
    arguments = [tmp_path / "shared.py", queries, "run", "--gin", "gin/query_attention.gin", *sets, "--out"]
    tables = [
        launched(by, *arguments, out, cache=tmp_path / out.name) for by, out in zip((ONE, TWO), folders, strict=True)
    ]
    assert tables[0] == tables[1] and "reranked" in tables[0]
    one, two = (json.loads((folder / "metrics.json").read_text())["protocols"] for folder in folders)
    assert one == two
    assert (folders[0] / "queries.csv").read_text() == (folders[1] / "queries.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])  # on images; on features that are pooled once
def test_gradients_of_an_embedder_are_those_of_one_process(tmp_path, folders, frozen):
    images = write_glyphs(tmp_path / "images", classes=12, images=6)
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    for by, folder in zip((ONE, TWO), folders, strict=True):
        folder.mkdir()
        launched(by, tmp_path / "embedder.py", folder, images, int(frozen), cache=tmp_path)
    one, two, other = (
        load_file(f / f"gradients{n}.safetensors") for f, n in zip([*folders, folders[1]], (0, 0, 1), strict=True)
    )
    assert (len(one) < 5) == frozen and max(float(np.abs(gradient).max()) for gradient in one.values()) > 1e-3
    for name, gradient in one.items():
        np.testing.assert_allclose(two[name], gradient, atol=1e-4 * np.abs(gradient).max() + 1e-8, err_msg=name)
        np.testing.assert_array_equal(two[name], other[name])


@pytest.mark.slow
def test_an_embedder_ends_with_the_table_of_one_process(tmp_path, folders):
    images = write_glyphs(tmp_path / "images", classes=12, images=6)
    lines = [f"folder.path = '{images}'", "Extractor.image_size = 32", "Training.steps = 3", "Training.batch_size = 8"]
    sets = [part for line in lines for part in ("--set", line)]
    (tmp_path / "shared.py").write_text(SHARED)
    files = ["--gin", "gin/embed/head.gin", "--gin", "gin/data/folder.gin"]
    tables = [
        launched(by, tmp_path / "shared.py", 8, "embed", *files, *sets, "--out", out, cache=tmp_path / out.name)
        for by, out in zip((ONE, TWO), folders, strict=True)
    ]
    assert tables[0] == tables[1] and "trained" in tables[0]


@pytest.mark.slow
def test_an_extraction_leaves_the_files_of_one_process(tmp_path, folders):
    images = write_glyphs(tmp_path / "images", classes=12, images=4)
    lines = [
        "Data.benchmark = 'folder'",
        f"folder.path = '{images}'",
        "Extractor.image_size = 32",
        "Extractor.batch_size = 4",
    ]
    sets = [part for line in [*lines, "Extraction.global_dim = 5"] for part in ("--set", line)]
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "none.gin").write_text("")
    for by, out in zip((ONE, TWO), folders, strict=True):
        arguments = [tmp_path / "shared.py", 8, "extract", "--gin", tmp_path / "none.gin", *sets, "--out", out]
        launched(by, *arguments, cache=tmp_path)
    for name in ("query", "gallery", "train"):
        one, two = ((folder / f"{name}_global.f32").read_bytes() for folder in folders)
        assert one == two and len(one) % 20 == 0
        one, two = (ames_files.Locals(folder / f"{name}_local.hdf5", len(one) // 20)[[0, 3]] for folder in folders)
        np.testing.assert_array_equal(one, two)


STUCK = """
import time

from locore.utils import distributed

distributed.wait()
if distributed.rank() == 1:
    time.sleep(30)
try:
    distributed.gathered(0)
except ValueError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_stuck_is_named(tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.setenv("LOCORE_TIMEOUT", "0.05")
    said = launched(TWO, tmp_path / "stuck.py", cache=tmp_path)
    assert "Process 0 of 2 has waited 0.05 minutes for process 1, which is stuck or has ended" in said


def test_shares_are_all_items_once_and_the_first_process_is_never_idle(monkeypatch):
    for number in range(1, 5):
        monkeypatch.setattr(distributed, "count", lambda number=number: number)
        for items in range(9):
            shares = []
            for rank in range(number):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                shares.append(distributed.share(list(range(items))))
            assert [item for share in shares for item in share] == list(range(items))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert shares[0] or not items
