"""Weights in safetensors files, with what else the file is to say."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from locore.files import atomic


def of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as a file can take it."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def save(module: nn.Module, path: Path, **metadata: str) -> None:
    """Write a module's weights, atomically."""
    with atomic(path) as temporary:
        save_file(of(module), temporary, metadata=metadata or None)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and what else it says.

    Raises:
        FileNotFoundError: there is none. SafetensorError: it is damaged.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
