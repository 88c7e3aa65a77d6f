"""What a broken-off training goes on from: weights, AdamW's moments and its state, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from locore.files import atomic


def save(path: Path, model: nn.Module, optimizer, state: dict) -> None:
    """Write all of it, atomically."""
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})


def restore(path: Path, model: nn.Module, optimizer) -> dict | None:
    """Load what `save` wrote and give its state; None where there is nothing.

    Raises:
        ValueError: the file is damaged or another model's.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = json.loads(file.metadata()["state"])
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"The checkpoint '{path}' is damaged or another model's; delete it to start again.") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights alone, atomically."""
    with atomic(path) as temporary:
        save_file(_weights(model), temporary)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load what `save_weights` wrote.

    Raises:
        ValueError: the file is missing, damaged or another model's.
    """
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"The weights '{path}' are damaged or another model's; delete the folder.") from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
