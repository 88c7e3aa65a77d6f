"""Where a number comes from: what every metrics.json says of its run."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path

import torch


def provenance(seed: int, config: str) -> dict:
    """Seed, machine, memory, commit, configuration and versions."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seed": seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "commit": _commit(),
        "config": config,
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("torch", "timm", "numba", "faiss-cpu")},
        },
    }


def _commit() -> str:
    """The checkout's commit, with a plus where files differ from it (results apart); "none" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!results"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return name.stdout.strip() + "+" * changed.returncode
