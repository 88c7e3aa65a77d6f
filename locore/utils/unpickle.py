"""Read pickles from outside without running code: plain values, numpy arrays and torch tensors only.

The file is mapped, and large arrays and tensors are views of it: a file of 20 GB takes no memory until it is read.
Arrays in pickles of protocol 2 and earlier are copied.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

MAPPED = 2**20  # bytes from which a value is a view of the file
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
    """Build an array from its bytes, which are copied unless they are mapped."""
    view = isinstance(data, memoryview)
    array = np.frombuffer(data if view else bytes(data), _plain(dtype)).reshape(shape, order=order)
    return array if view else array.copy()


def _storage(data: Any) -> Any:
    """Build the storage of a tensor from the file of torch.save that a plain pickle has; a mapped one is not read."""
    if not isinstance(data, memoryview):
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    file = _Mapped(data)
    for _ in range(3):  # a magic number, the version of the format, the machine
        _Restricted(file).load()
    kind, count = _StorageHeader(file).load()
    _Restricted(file).load()  # the names of the storages, of which there is one
    values = file.rest()[8:]  # behind their number
    if len(values) != count * kind.itemsize:
        raise pickle.UnpicklingError("a tensor has another size than its bytes")
    whole = torch.frombuffer(values, dtype=torch.uint8).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=whole, dtype=kind, _internal=True)


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
    ("torch.storage", "_load_from_bytes"): _storage,
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
            _, shape, dtype, by_column, data = state
            if len(data) != math.prod(shape) * _plain(dtype).itemsize or not isinstance(data, (bytes, str, memoryview)):
                raise pickle.UnpicklingError("an array has another size than its bytes")
            if isinstance(data, memoryview):
                self._replace(np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C"))
                return
        elif not (
            isinstance(made, np.dtype)
            and made.kind not in "OV"
            and tuple(state[2:5]) == (None, None, None)
            and state[5] == (made.itemsize if made.kind in "SU" else -1)
        ):
            raise pickle.UnpicklingError(f"it sets the state of a {type(made).__name__}")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build

    def _replace(self, array: np.ndarray) -> None:
        """Put a mapped array in the place of the empty one whose state would be set."""
        self.stack.pop()  # type: ignore[attr-defined]
        begun, memo = self.stack[-1], self.memo  # type: ignore[attr-defined]
        self.stack[-1] = array  # type: ignore[attr-defined]
        memo.update({number: array for number, value in memo.items() if value is begun})

    def load_bytearray8(self) -> None:
        """Leave mapped bytes where they are."""
        (count,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(count))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


class _StorageHeader(_Restricted):
    """Reads which storage a file of torch.save has: the type of its values and their number."""

    def find_class(self, module: str, name: str) -> Any:
        kinds = torch.storage._storage_type_to_dtype_map()
        if module != "torch" or name not in kinds:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return kinds[name]

    def persistent_load(self, name: Any) -> Any:
        _, kind, _, _, count, *_ = name
        return kind, count


class _Mapped:
    """A file in memory, whose long reads are views of it."""

    def __init__(self, data: Any):
        self.data, self.at = memoryview(data), 0

    def read(self, count: int) -> Any:
        found = self.data[self.at : self.at + count]
        self.at += len(found)
        return found if len(found) >= MAPPED else bytes(found)

    def readline(self) -> bytes:
        end = self.at
        while end < len(self.data) and self.data[end] != ord("\n"):
            end += 1
        return bytes(self.read(end + 1 - self.at))

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def rest(self) -> memoryview:
        """Return what has not been read."""
        return self.data[self.at :]


def map_file(path: Path) -> mmap.mmap:
    """Map a file that is not empty; what is written to the map stays in memory.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is empty.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"'{path}' is empty; get another.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def unpickle(path: Path, mapped: mmap.mmap | None = None) -> Any:
    """Read a pickle of lists, dictionaries, strings, numbers, numpy arrays and torch tensors.

    Args:
        path: the file.
        mapped: the file as `map_file` returns it, for who wants to release what was read; None = it is mapped here.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or contains anything else, which is then not run.
    """
    try:
        return _Restricted(_Mapped(mapped or map_file(path)), encoding="latin1").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a hostile or broken pickle may raise anything
        why = str(error).split("\n")[0].split(". ")[0] or type(error).__name__  # torch adds how to load it unsafely
        raise ValueError(
            f"'{path}' is not a pickle of plain values, arrays and tensors ({why}); get another."
        ) from error
