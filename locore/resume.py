"""What a broken-off training goes on from: weights, their average, AdamW's moments and its state, in one file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from locore import weights


def save(path: Path, model: nn.Module, optimizer, state: dict, average: nn.Module | None = None) -> None:
    """Write all of it, atomically."""
    tensors = {f"model.{name}": value for name, value in weights.of(model).items()}
    if average:
        tensors |= {f"average.{name}": value for name, value in weights.of(average).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
    weights.write(path, tensors, state=json.dumps(state))


def restore(path: Path, model: nn.Module, optimizer, average: nn.Module | None = None) -> dict | None:
    """Load what `save` wrote and give its state; None where there is nothing.

    Raises:
        ValueError: the file is damaged or another model's.
    """
    if not path.exists():
        return None
    try:
        tensors, said = weights.read(path)
        state = json.loads(said["state"])
        model.load_state_dict(_under("model.", tensors))
        if average:
            average.load_state_dict(_under("average.", tensors))
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"The checkpoint '{path}' is damaged or another model's; delete it to start again.") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights alone, as `locore.weights.save` writes them.

    Raises:
        ValueError: the file is missing, damaged or another model's.
    """
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"The weights '{path}' are damaged or another model's; delete the folder.") from error
