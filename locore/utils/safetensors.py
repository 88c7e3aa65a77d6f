"""Weights in safetensors files, with metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from locore.utils.files import atomic

NAMED = 5  # names in a message
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "state",
    "extractor",
)  # in which people save a state dict


def of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict as a file can take it."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def save(module: nn.Module, path: Path, **metadata: str) -> None:
    """Write a module's weights, atomically; errors as `write`."""
    write(path, of(module), **metadata)


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file, atomically.

    Args:
        path: the file.
        tensors: by name.
        metadata: text by name.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata or None)
        except SafetensorError as error:
            raise OSError(
                f"'{path}' cannot be written ({error}); free some space, and run the same command again."
            ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a file.

    Raises:
        FileNotFoundError: the file is missing.
        SafetensorError: the file is damaged.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of safetensors or of torch.save, also of a training checkpoint or of a parallel
    model.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or has no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return read(path)[0]
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's restricted loader fails in many ways at what it does not know
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"'{path}' holds an object of {asked[1]}, which could run code and is not loaded; save the model's "
                "state_dict() alone."
            ) from error
        raise ValueError(f"'{path}' is not a state dict of torch.save, or it is damaged.") from error
    while isinstance(found, dict) and (wrapper := next((w for w in WRAPPERS if isinstance(found.get(w), dict)), None)):
        found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in found.items()):
        raise ValueError(f"'{path}' holds more than a state dict; save the model's state_dict() alone.")
    return {name.removeprefix("module."): value for name, value in found.items()}


def some(names: Iterable[str]) -> str:
    """Write names for a message: the first few, and how many more there are."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def fill(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load a state dict completely.

    Args:
        module: that is filled.
        tensors: by name.
        source: where they are from, for messages.

    Raises:
        ValueError: tensors are missing, left over, of the wrong shape or not finite; the message names the first.
    """
    wanted = module.state_dict()
    wrong = {
        "missing": [name for name in wanted if name not in tensors],
        "left over": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
        "not finite": [name for name, value in tensors.items() if not value.isfinite().all()],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"The tensors of '{source}' do not fit its model: {lists}.")
    module.load_state_dict(tensors)
