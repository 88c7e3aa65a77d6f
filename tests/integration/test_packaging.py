"""The wheel carries every gin file and package, and runs from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_gin_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(p.relative_to(ROOT)) for top in ("backbones", "locore", "experiments") for p in (ROOT / top).rglob("*.py")
    }
    configs = {f"experiments/configs/{p.relative_to(ROOT / 'gin')}" for p in (ROOT / "gin").rglob("*.gin")}
    weights = {str(p.relative_to(ROOT)) for p in (ROOT / "locore" / "checkpoints").rglob("*.safetensors")}
    assert configs and weights and modules | configs | weights <= held
    assert not any(name.startswith("gin/") for name in held)


def test_a_gin_file_of_the_wheel_runs_from_elsewhere(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = "import experiments.run; print(experiments.run.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert str(installed) in found.stdout
    command = [sys.executable, "-m", "experiments.run", "--gin", "gin/mamba.gin", "--dry-run"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Model.backbone = 'mamba'" in done.stdout
