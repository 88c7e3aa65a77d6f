"""SIGKILL in extraction, in training and in evaluation: the same command goes on and ends with the same result."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_inputs import QUICK, write_glyphs

from experiments import run as command


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"))


def arguments(folder, images):
    lines = [part for line in (*QUICK, f"folder.path = '{images}'") for part in ("--set", line)]
    return ["--gin", "gin/query_attention.gin", "--out", str(folder / "run"), *lines]


def start(folder, images):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments(folder, images)],
        env={**os.environ, "LOCORE_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCORE_CACHE", str(folder / "cache"))
        assert command.main(arguments(folder, images)) == 0
    return outcome(folder / "run")


def outcome(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for changing in ("seconds", "latency_ms", "peak_memory_mb"):
        del metrics[changing]
    return metrics, (run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """The folder of an unbroken run, and what it gave."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, finish(folder, images)


def extracting(run):
    return (run / "log.txt").exists()


def training(run):
    return (run / "last.safetensors").exists()


def evaluating(run):
    return (run / "log.txt").exists() and "training:" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    "stage",
    [pytest.param(extracting, marks=pytest.mark.slow), training, pytest.param(evaluating, marks=pytest.mark.slow)],
)
def test_killed_it_goes_on_and_ends_the_same(stage, tmp_path, images, finished):
    process = start(tmp_path, images)
    deadline = time.monotonic() + 300
    while not stage(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert finish(tmp_path, images) == finished[1]


def test_a_finished_run_is_shown_and_another_configuration_refused(images, finished, capsys):
    folder, _ = finished
    assert command.main(arguments(folder, images)) == 0
    printed = capsys.readouterr().out
    assert "is finished" in printed and "reranked" in printed
    assert command.main([*arguments(folder, images), "--set", "Training.steps = 8"]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert sorted(p.name for p in (folder / "run").glob("*.png")) == [
        "curves.png",
        "gains.png",
        "lists.png",
        "training.png",
    ]


def test_a_run_folder_in_use_is_refused(tmp_path, images, capsys):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.main(arguments(tmp_path, images)) == 2
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("error: The run folder") and "in use" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
