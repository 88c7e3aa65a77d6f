"""SIGKILL in extraction, in training and in evaluation: the same command goes on and ends with the same result."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_inputs import QUICK, write_glyphs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"))


def start(folder, images):
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "--gin",
        "gin/query_attention.gin",
        "--out",
        str(folder / "run"),
    ]
    for line in (*QUICK, f"folder.path = '{images}'"):
        command += ["--set", line]
    environment = {**os.environ, "LOCORE_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder, images):
    process = start(folder, images)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    run = folder / "run"
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


def test_a_finished_run_is_shown_and_another_configuration_refused(images, finished):
    folder, _ = finished
    again = start(folder, images)
    printed, _ = again.communicate(timeout=100)
    assert again.returncode == 0 and "is finished" in printed and "reranked" in printed
    QUICK.append("Training.steps = 8")
    try:
        other = start(folder, images)
        _, error = other.communicate(timeout=100)
    finally:
        QUICK.pop()
    assert other.returncode == 2 and "another configuration" in error
    assert sorted(p.name for p in (folder / "run").glob("*.png")) == [
        "curves.png",
        "gains.png",
        "lists.png",
        "training.png",
    ]


def test_a_run_folder_in_use_is_refused(tmp_path, images):
    first = start(tmp_path, images)
    while not (tmp_path / "run" / "config.gin").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it holds its folder for as long as the second one takes to start
    second = start(tmp_path, images)
    _, error = second.communicate(timeout=100)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and error.strip().splitlines()[-1].startswith("error: The run folder")
    assert "in use" in error
