"""The origin of a number, as every metrics.json has it."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path

import torch

PACKAGES = ("torch", "timm", "numba", "faiss-cpu", "pytorch-metric-learning")


def provenance(seed: int, config: str) -> dict:
    """Return seed, machine, memory, commit, configuration and versions."""
    return {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seed": seed,
        "machine": machine(),
        "commit": commit(),
        "config": config,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
    }


def machine() -> str:
    """Describe processor, threads and device."""
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"


def commit() -> str:
    """Return the commit of the checkout, with a plus if files differ from it (results apart); "none" outside a
    checkout.
    """
    git = ["git", "-C", str(Path(__file__).parents[2])]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--", ".", ":!results"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return name.stdout.strip() + "+" * bool(changed)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # faiss has other names where it runs on a GPU
        return None
