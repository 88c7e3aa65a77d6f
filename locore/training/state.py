"""What an interrupted training resumes from: weights, their average, AdamW's moments and the state, in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from locore.utils import safetensors


def fresh() -> dict[str, Any]:
    """Return the state of a training that has not started."""
    return {"step": 0, "best": -1.0, "seconds": 0.0, "history": {"loss": [], "validation": []}}


def save(path: Path, model: nn.Module, optimizer, state: dict, average: nn.Module | None = None) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: the file.
        model: whose weights are written.
        optimizer: AdamW, whose moments are written.
        state: as `fresh` returns it, of today.
        average: moving average of the weights, if there is one.
    """
    tensors = {f"model.{name}": value for name, value in safetensors.of(model).items()}
    if average:
        tensors |= {f"average.{name}": value for name, value in safetensors.of(average).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
    safetensors.write(path, tensors, state=json.dumps(state))


def restore(path: Path, model: nn.Module, optimizer, average: nn.Module | None = None) -> dict | None:
    """Load a checkpoint that `save` wrote into the model, the optimizer and the average.

    Returns:
        The state; None if there is no checkpoint.

    Raises:
        ValueError: the file is damaged or belongs to another model.
    """
    if not path.exists():
        return None
    try:
        tensors, metadata = safetensors.read(path)
        state = json.loads(metadata["state"])
        model.load_state_dict(_under("model.", tensors))
        if average:
            average.load_state_dict(_under("average.", tensors))
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The checkpoint '{path}' is damaged or belongs to another model; delete it to start again."
        ) from error
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
    """Load weights that `locore.utils.safetensors.save` wrote.

    Raises:
        ValueError: the file is missing, damaged or belongs to another model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights '{path}' are damaged or belong to another model; delete the folder and train again."
        ) from error
