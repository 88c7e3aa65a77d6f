"""Read pickles from outside without running code: plain values, numpy arrays and torch tensors only."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

NAMES = ("numpy._core", "numpy.core")  # numpy 2 renamed it; files of either name are about


def _latin1(text: str, encoding: str) -> bytes:
    """Encode bytes as pickles of Python 2 carry them; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec '{encoding}' is not allowed")
    return text.encode("latin1")


class _Array:
    """Stand-in for numpy.ndarray, which could be called with an address."""


def _plain(dtype: Any) -> np.dtype:
    """Check that a dtype is of numbers or text; objects are addresses, and structured types may contain some."""
    if not isinstance(dtype, np.dtype) or dtype.kind in "OV":
        raise pickle.UnpicklingError("it has an array of objects")
    return dtype


def _begun(kind: Any, *_: Any) -> np.ndarray:
    """Return an empty array, whose state is set afterwards."""
    return np.empty(0)


def _scalar(dtype: Any, data: Any) -> Any:
    """Build a number of numpy's."""
    return np.frombuffer(bytes(data), _plain(dtype), 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Build an array from its bytes, which are copied."""
    return np.frombuffer(bytes(data), _plain(dtype)).reshape(shape, order=order).copy()


# What rebuilds an array, a number or a tensor, under every name that numpy has pickled it by. None runs code.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"{name}.{module}", function): ours
        for name in NAMES
        for module, function, ours in (
            ("multiarray", "_reconstruct", _begun),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    **{(name, "bytes"): lambda: b"" for name in ("builtins", "__builtin__")},  # how an empty one is written
    ("_codecs", "encode"): _latin1,
    # How a tensor lies in a plain pickle: as a file of torch.save, with a view of it and hooks, which are always empty.
    ("torch.storage", "_load_from_bytes"): lambda data: torch.load(
        io.BytesIO(data), weights_only=True, map_location="cpu"
    ),
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("collections", "OrderedDict"): dict,
}


class _Restricted(pickle._Unpickler):  # type: ignore[name-defined]  # in Python, so that BUILD can be looked at
    """Unpickler that finds what `ALLOWED` names, and nothing else."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def load_build(self) -> None:
        """Set the state of arrays and plain types alone: a structured type could point numpy anywhere in memory."""
        state, made = self.stack[-1], self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(made, np.ndarray):
            _, shape, dtype, _, data = state
            if len(data) != math.prod(shape) * _plain(dtype).itemsize or not isinstance(data, bytes | str):
                raise pickle.UnpicklingError("an array has another size than its bytes")
        elif not (
            isinstance(made, np.dtype)
            and made.kind not in "OV"
            and tuple(state[2:5]) == (None, None, None)
            and state[5] == (made.itemsize if made.kind in "SU" else -1)
        ):
            raise pickle.UnpicklingError(f"it sets the state of a {type(made).__name__}")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def unpickle(path: Path) -> Any:
    """Read a pickle of lists, dictionaries, strings, numbers, numpy arrays and torch tensors.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or contains anything else, which is then not run.
    """
    try:
        with open(path, "rb") as file:
            return _Restricted(file, encoding="latin1").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a hostile or broken pickle may raise anything
        why = str(error).split("\n")[0].split(". ")[0] or type(error).__name__  # torch adds how to load it unsafely
        raise ValueError(
            f"'{path}' is not a pickle of plain values, arrays and tensors ({why}); get another."
        ) from error
