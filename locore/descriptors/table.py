"""Descriptors in memory, and on disk in the layout of AMES and LOCORE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from locore.retrieval import Table
from locore.utils.files import atomic
from locore.utils.renamed import rename_keys

LEADING = 5  # columns before a local descriptor: x, y, scale index, mask (1 = missing), weight
MISSING = 3  # the mask's


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of images; every tensor has the same leading dimensions.

    Attributes:
        global_descriptor: (..., Dg), L2-normalised.
        local: (..., L, D).
        position: (..., L, 2), x and y in [0, 1].
        scale: (..., L) long, index of the scale.
        mask: (..., L) bool, True = real.
        weight: (..., L), the detector's, best first, or the norm of a grid's cell.
    """

    global_descriptor: Tensor
    local: Tensor
    position: Tensor
    scale: Tensor
    mask: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.global_descriptor)

    @property
    def global_matrix(self) -> np.ndarray:
        """Global descriptors of N images as float32 rows to search, (N, Dg)."""
        return self.global_descriptor.float().numpy()

    def __getitem__(self, index) -> Descriptors:
        """Select images, by one indexed read of each tensor."""
        return Descriptors(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def where(cls, condition: Tensor, ours: Descriptors, theirs: Descriptors) -> Descriptors:
        """Select images of `ours` where condition (N,) holds, else of `theirs`."""

        def chosen(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(condition.view(-1, *[1] * (one.ndim - 1)), one, other)

        return cls(*(chosen(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(cls)))

    @classmethod
    def stack(cls, several: list[Descriptors]) -> Descriptors:
        """Stack descriptors of equally many images under a new leading dimension."""
        return cls(*(torch.stack([getattr(each, f.name) for each in several]) for f in fields(cls)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by attribute name, as numpy's files take them."""
        return {f.name: getattr(self, f.name).numpy() for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Descriptors:
        """Build descriptors from the arrays of `arrays`; other arrays are ignored."""
        named = rename_keys("Descriptors", arrays)  # caches of earlier versions have other names
        return cls(*(torch.from_numpy(named[f.name]) for f in fields(cls)))

    def pin_memory(self) -> Descriptors:
        """Copy to pinned memory, from which a GPU reads while the CPU goes on."""
        return Descriptors(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def to(self, device: torch.device | str) -> Descriptors:
        """Move to a device, floating-point tensors as float32."""
        return Descriptors(
            *(
                value.to(device, torch.float32 if value.is_floating_point() else None, non_blocking=True)
                for value in (getattr(self, f.name) for f in fields(self))
            )
        )


class DescriptorTable(Protocol):
    """A table that is indexed by images: `Descriptors`, or one that reads or makes them when they are needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Descriptors: ...


class SearchedTable(DescriptorTable, Protocol):
    """A table whose global descriptors can be searched."""

    @property
    def global_matrix(self) -> Table: ...


@dataclass(frozen=True)
class Rows:
    """Some rows of a table, read when they are indexed.

    Attributes:
        table: the whole table.
        rows: (N,) indices of the rows.
    """

    table: SearchedTable
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def global_matrix(self) -> np.ndarray:
        """Global descriptors of these rows, (N, Dg)."""
        return np.asarray(self.table.global_matrix[self.rows.numpy()], dtype=np.float32)

    def __getitem__(self, rows: Tensor) -> Descriptors:
        return self.table[self.rows[rows]]


def write_arrays(path: Path, global_matrix: np.ndarray, features: np.ndarray) -> None:
    """Write HDF5 atomically: `features` (N, L, 5 + D) as AMES and LOCORE have it, `global` (N, Dg), checksums."""
    # Made in memory, since HDF5 does not survive a full disk.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for name, rows in (("features", features), ("global", global_matrix)):
            chunk = (min(len(rows), 256), *rows.shape[1:])
            file.create_dataset(name, data=rows, chunks=chunk, fletcher32=True)
        file.flush()
        image = file.id.get_file_image()
    with atomic(path) as temporary:
        temporary.write_bytes(image)


def read_arrays(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Read `global` and `features` of a file that `write_arrays` wrote.

    Raises:
        ValueError: the file is damaged, or has another number of rows.
    """
    try:
        with h5py.File(path, "r") as file:
            global_matrix, features = file["global"][:], file["features"][:]
    except FileNotFoundError:
        raise
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if len(global_matrix) != rows or len(features) != rows or features.ndim != 3 or features.shape[2] <= LEADING:
        raise ValueError(f"{path} is damaged: shapes {global_matrix.shape} and {features.shape} for {rows} images.")
    return global_matrix, features


def unpack(global_matrix: Tensor, features: Tensor) -> Descriptors:
    """Turn the two tables of a file, (N, Dg) and (N, L, 5 + D), into `Descriptors`; values keep their precision."""
    return Descriptors(
        global_descriptor=global_matrix,
        local=features[..., LEADING:],
        position=features[..., 0:2],
        scale=features[..., 2].long(),
        mask=features[..., MISSING] == 0,
        weight=features[..., 4],
    )
