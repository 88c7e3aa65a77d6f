"""Our own file of weights: tensors, and in its metadata what rebuilds the re-ranker and what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor, nn

from locore.utils import safetensors
from locore.utils.renamed import rename_keys

WEIGHTS = "model.safetensors"


class WeightsFile(NamedTuple):
    """What a file of weights holds.

    Attributes:
        tensors: by name.
        spec: arguments that rebuild the re-ranker; None = the file is not ours.
        trained: what it was trained on: "extractor", its settings, and "candidates", K; None = it does not say.
    """

    tensors: dict[str, Tensor]
    spec: dict[str, Any] | None
    trained: dict[str, Any] | None


def write(model: nn.Module, path: Path, spec: dict[str, Any], trained: dict[str, Any] | None) -> None:
    """Write the weights of a re-ranker with its spec and what it was trained on to one safetensors file, atomically.

    Raises:
        ValueError: the re-ranker's encoder was given as an object, so that nothing can rebuild it by name.
    """
    if not isinstance(spec.get("encoder", ""), str):
        raise ValueError("Only a re-ranker whose encoder was given by name can be saved; register the encoder first.")
    # One text: safetensors does not keep the order of several, and equal runs have to end in equal bytes.
    safetensors.save(model, path, locore=json.dumps({**spec, **({"trained": trained} if trained else {})}))


def read(path: Path) -> WeightsFile:
    """Read a file of weights, of safetensors or of torch.save.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            tensors, metadata = safetensors.read(path)
        else:
            tensors, metadata = safetensors.state_dict(path), {}
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"There is no model at '{path}'; the folder of a finished run has one.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged ({error}).") from error
    if "locore" not in metadata:
        return WeightsFile(tensors, None, None)
    try:
        spec = json.loads(metadata["locore"])
        trained = spec.pop("trained", None)
        if trained:
            trained["extractor"] = rename_keys("Extractor", trained["extractor"])
        if "settings" in spec and "method" in spec:
            spec["settings"] = rename_keys(spec["method"], spec["settings"])
        return WeightsFile(tensors, spec, trained)
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' has damaged metadata, or was written by another version.") from error
