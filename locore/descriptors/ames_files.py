"""Files of AMES and LOCORE: local descriptors in HDF5, raw global descriptors, and neighbours.

Descriptors are read from disk when they are needed, so a gallery of a million images need not fit into memory.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from locore.descriptors.table import LEADING, Descriptors, Rows, unpack
from locore.retrieval import Neighbours
from locore.utils.files import atomic
from locore.utils.unpickle import map_file, unpickle

log = logging.getLogger(__name__)

AT_ONCE = 10_000  # rows
NUMBERS = ("float", "bfloat", "int", "uint")  # how the names of their types begin
LOOKED_AT = 100  # rows whose norm is looked at
LOCALS = "features"  # the data set in their HDF5: (N, topk, 5 + D), x, y, scale, mask (1 = missing), weight first
METADATA, BITS = "metadata", "descriptor"  # its two fields in ELViS's binary files: those five, and packed bits


def read_globals(path: Path, images: int) -> np.ndarray:
    """Map raw float32 descriptors (N, D) from disk; D follows from the size of the file.

    Args:
        path: the file.
        images: N.

    Raises:
        ValueError: the file is missing, or its size does not fit so many images.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise ValueError(f"There are no global descriptors at '{path}'.") from None
    if not size or not images or size % (4 * images):
        raise ValueError(
            f"'{path}' has {size:,} bytes, which are not float32 descriptors of {images:,} images; it belongs to "
            "another gallery, or was copied incompletely."
        )
    rows = np.memmap(path, dtype=np.float32, mode="c", shape=(images, size // (4 * images)))
    norm = float(np.median(np.linalg.norm(rows[:LOOKED_AT].astype(np.float64), axis=1)))
    if not 0.5 < norm < 2:
        log.warning(
            "'%s' has descriptors of norm %.2g; it should be 1, since inner products are compared. Is it float32?",
            *(path, norm),
        )
    return rows


def write_globals(path: Path, rows: np.ndarray) -> None:
    """Write descriptors (N, D) as raw float32, atomically."""
    with atomic(path) as temporary:
        np.ascontiguousarray(rows, dtype=np.float32).tofile(temporary)


class Locals:
    """Local descriptors in HDF5, read row by row.

    Args:
        path: the file.
        images: number of images that it must describe.
        count: L, the first descriptors of each image that are read; None = all.

    Raises:
        ValueError: the file is missing or damaged, or of another shape or type.
    """

    def __init__(self, path: Path, images: int, count: int | None = None):
        self.path = path
        try:
            file = h5py.File(path, "r")
            table = file[LOCALS]
            shape, kind = table.shape, table.dtype
        except FileNotFoundError:
            raise ValueError(f"There are no local descriptors at '{path}'.") from None
        except (OSError, KeyError, RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged, or has no data set '{LOCALS}' ({error}).") from error
        self.packed = _is_packed(kind) and len(shape) == 2
        if self.packed:
            width = 8 * kind[BITS].shape[0]
        elif len(shape) == 3 and shape[2] > LEADING and kind in (np.float16, np.float32, np.float64):
            width = shape[2] - LEADING
        else:
            raise ValueError(
                f"'{path}' has {kind} of shape {shape}; it must be float16, float32 or float64 of "
                f"(images, descriptors, 5 + width), or bits: '{METADATA}' and '{BITS}' of (images, descriptors)."
            )
        if shape[0] != images:
            raise ValueError(f"'{path}' describes {shape[0]:,} images, but {images:,} are needed.")
        if count is not None and not 1 <= count <= shape[1]:
            raise ValueError(f"'{path}' has {shape[1]} descriptors an image, but {count} are needed.")
        if table.external or table.is_virtual or not table.id.get_storage_size():
            raise ValueError(f"'{path}' has no rows of its own: it refers to other files, or was never filled.")
        self.count, self.width = count or shape[1], width
        offset = table.id.get_offset()
        # Rows of a contiguous table lie side by side, and a memory map reads them without HDF5's cost of a selection.
        self._table = table if offset is None else np.memmap(path, kind, "r", offset, shape)
        self._opened_by = os.getpid()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Read rows (M,) in any order as (M, L, 5 + D); each row is read once, in the order on disk."""
        if isinstance(self._table, h5py.Dataset) and self._opened_by != os.getpid():
            # HDF5's own state is not for a process that was forked.
            self._table, self._opened_by = h5py.File(self.path, "r")[LOCALS], os.getpid()
        known, places = np.unique(rows, return_inverse=True)
        found = np.empty((len(known), self.count, *self._table.shape[2:]), dtype=self._table.dtype)
        try:
            for place, row in enumerate(known):
                found[place] = self._table[row, : self.count]
        except (OSError, RuntimeError) as error:
            raise ValueError(f"'{self.path}' is damaged ({error}); get it again.") from error
        if self.packed:
            found = unpack_bits(found)
        finite = np.isfinite(found).all(axis=(1, 2))
        if not finite.all():
            image = known[np.flatnonzero(~finite)[0]]
            raise ValueError(f"'{self.path}' has descriptors that are not finite (image {image}); extract it again.")
        return found[places]


def pack_bits(features: np.ndarray) -> np.ndarray:
    """Return features (N, L, 5 + D) as (N, L) of packed bits, a bit for each number above 0; D is a multiple of 8."""
    signs = np.packbits(features[..., LEADING:] > 0, axis=-1)
    kind = np.dtype([(METADATA, np.float16, (LEADING,)), (BITS, np.uint8, signs.shape[-1:])])
    packed = np.empty(features.shape[:-1], dtype=kind)
    packed[METADATA], packed[BITS] = features[..., :LEADING], signs
    return packed


def unpack_bits(packed: np.ndarray) -> np.ndarray:
    """Return packed bits (N, L) as features (N, L, 5 + D) of half precision: 1 for a bit, -1 for none."""
    signs = 2 * np.unpackbits(packed[BITS], axis=-1).astype(np.float16) - 1
    return np.concatenate([packed[METADATA].astype(np.float16), signs], axis=-1)


def _is_packed(kind: np.dtype) -> bool:
    if set(kind.names or ()) != {METADATA, BITS}:
        return False
    return kind[METADATA].shape == (LEADING,) and kind[BITS].base == np.uint8 and len(kind[BITS].shape) == 1


def write_locals(path: Path, features: np.ndarray) -> None:
    """Write features (N, L, 5 + D) as contiguous HDF5, atomically."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(LOCALS, data=features)


def write_joined(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], images: int, globals_path: Path, locals_path: Path
) -> None:
    """Write descriptors that come in parts to both files, each whole or absent.

    Args:
        parts: global descriptors (n, D) and features (n, L, 5 + D) of each part.
        images: number of images in all.
        globals_path: file of the global descriptors.
        locals_path: file of the local descriptors.
    """
    with atomic(globals_path) as flat, atomic(locals_path) as tables, h5py.File(tables, "w") as file:
        start, table = 0, None
        with open(flat, "wb") as rows:
            for global_matrix, features in parts:
                if table is None:
                    # HDF5 does not survive a full disk, so it is seen to beforehand.
                    needed, free = images * features[0].nbytes, shutil.disk_usage(locals_path.parent).free
                    if needed > free:
                        raise OSError(
                            f"'{locals_path}' needs {needed:,} bytes, and {free:,} are free; free some space."
                        )
                    table = file.create_dataset(LOCALS, (images, *features.shape[1:]), features.dtype)
                np.ascontiguousarray(global_matrix, dtype=np.float32).tofile(rows)
                table[start : start + len(features)] = features
                start += len(features)


@dataclass(frozen=True)
class Stored:
    """A table of descriptors on disk, read when it is indexed.

    Attributes:
        global_matrix: (N, Dg) rows.
        local_table: local descriptors of the same images.
    """

    global_matrix: np.ndarray
    local_table: Locals

    def __post_init__(self):
        if len(self.global_matrix) != len(self.local_table):
            raise ValueError(
                f"Global descriptors of {len(self.global_matrix):,} images and local ones of {len(self.local_table):,} "
                "do not belong together."
            )

    def __len__(self) -> int:
        return len(self.global_matrix)

    def __getitem__(self, rows: Tensor) -> Descriptors:
        """Read the descriptors of some images, rows of any shape."""
        flat = rows.flatten().numpy()
        global_matrix = np.ascontiguousarray(self.global_matrix[flat])
        if not np.isfinite(global_matrix).all():
            raise ValueError("A global descriptor is not finite; extract the file again.")
        read = unpack(torch.from_numpy(global_matrix), torch.from_numpy(self.local_table[flat]))
        return read[torch.arange(len(flat)).view(rows.shape)]


@dataclass(frozen=True)
class Behind:
    """Rows (N, D) of two tables, those of the second after those of the first, without a copy."""

    first: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        ours = rows < len(self.first)
        found = np.empty((len(rows), self.first.shape[1]), dtype=self.first.dtype)
        found[ours], found[~ours] = self.first[rows[ours]], self.second[rows[~ours] - len(self.first)]
        return found


@dataclass(frozen=True)
class Joined:
    """Two tables on disk as one: a gallery, then the distractors."""

    first: Stored
    second: Stored

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def global_matrix(self) -> Behind:
        """(N, Dg), still on disk."""
        return Behind(self.first.global_matrix, self.second.global_matrix)

    def __getitem__(self, rows: Tensor) -> Descriptors:
        """Read the descriptors of some images, rows of any shape."""
        flat = rows.flatten()
        ours = flat < len(self.first)
        parts = self.first[flat[ours]], self.second[flat[~ours] - len(self.first)]
        places = torch.cat([ours.nonzero(), (~ours).nonzero()]).squeeze(1).argsort()
        together = Descriptors(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Descriptors)))
        return together[places.view(rows.shape)]


def on_disk(table: object) -> bool:
    """Return whether a table is read from disk, so that reading ahead pays."""
    return isinstance(table.table if isinstance(table, Rows) else table, Stored | Joined)


def count_images(path: Path) -> int:
    """Return how many images a file of local descriptors describes.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            return len(file[LOCALS])
    except FileNotFoundError:
        raise ValueError(f"There are no local descriptors at '{path}'.") from None
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is damaged, or has no data set '{LOCALS}' ({error}).") from error


class NeighbourFile:
    """Neighbours on disk: a pickled array or tensor (2, queries, topk), similarities and then indices.

    The file is mapped, and read as far as it is asked for: published ones have hundreds of neighbours of a million
    images.

    Args:
        path: the file.
        queries: number of queries.
        gallery: number of gallery images.

    Raises:
        ValueError: the file is missing, cannot be read safely, has another shape, or has the most similar image last.
    """

    def __init__(self, path: Path, queries: int, gallery: int):
        try:
            self._file = map_file(path)
            found = unpickle(path, self._file)
        except FileNotFoundError:
            raise ValueError(f"There are no neighbours at '{path}'.") from None
        if isinstance(found, Tensor):
            if found.is_complex():
                raise ValueError(f"'{path}' has complex numbers instead of similarities and indices.")
            if found.layout != torch.strided or found.is_quantized:
                raise ValueError(f"'{path}' has a tensor without plain values, such as a sparse one.")
            table: Tensor | np.ndarray = found.detach()
            kind = str(found.dtype).removeprefix("torch.")
        else:
            try:
                table = array = np.asarray(found)
            except ValueError:
                raise ValueError(f"'{path}' has lists of different lengths instead of an array.") from None
            kind = array.dtype.name
        if tuple(table.shape[:2]) != (2, queries) or table.ndim != 3 or not kind.startswith(NUMBERS):
            raise ValueError(
                f"'{path}' has {kind} of shape {tuple(table.shape)}; it must be (2, {queries}, neighbours), "
                "similarities and then indices."
            )
        exact = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24}.get(kind, gallery)
        if gallery > exact:
            raise ValueError(f"'{path}' has too few bits for the indices of {gallery:,} images; save it as float64.")
        self.path, self.gallery, self._table = path, gallery, table
        self._check_order()

    def __len__(self) -> int:
        return self._table.shape[1]

    def indices(self, rows: np.ndarray) -> np.ndarray:
        """Return the neighbours (M, topk) int64 of some queries.

        Raises:
            ValueError: an index is not a whole number, names no image, or names one twice.
        """
        found = self._part(1, rows)
        indices = found.astype(np.int64)
        if (indices != found).any():
            raise ValueError(f"'{self.path}' has indices that are not whole numbers.")
        if indices.size and not 0 <= indices.min() <= indices.max() < self.gallery:
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise ValueError(f"'{self.path}' names image {wrong:,}, and the gallery has {self.gallery:,}.")
        part = np.sort(indices, axis=1)
        twice = (part[:, 1:] == part[:, :-1]).any(axis=1)
        if twice.any():
            raise ValueError(f"'{self.path}' names an image twice for query {rows[np.flatnonzero(twice)[0]]}.")
        return indices

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """Return the similarities (M, topk) float32 of some queries.

        Raises:
            ValueError: one is not finite.
        """
        return self._part(0, rows).astype(np.float32)

    def _check_order(self) -> None:
        """Refuse lists of which most rise, by some of them."""
        some = np.linspace(0, len(self) - 1, min(len(self), AT_ONCE)).astype(np.int64)
        similarities = self._part(0, some)
        middle = similarities.shape[1] // 2
        if middle and (similarities[:, :middle].mean(1) < similarities[:, middle:].mean(1)).mean() > 0.5:
            raise ValueError(
                f"'{self.path}' has similarities that rise along its lists: they are distances, or the best image is "
                "last. Save similarities, the highest first."
            )

    def _part(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Return some rows of the similarities or of the indices, and release what was read of the file."""
        if isinstance(self._table, Tensor):
            part = self._table[number][torch.from_numpy(rows)]
            found = (part.double() if part.is_floating_point() else part).numpy()
        else:
            found = self._table[number][rows]
        self._file.madvise(mmap.MADV_DONTNEED)
        if not np.isfinite(found).all():
            raise ValueError(f"'{self.path}' has similarities or indices that are not finite.")
        return found


def read_neighbours(path: Path, queries: int, gallery: int) -> Neighbours:
    """Read a whole file of neighbours; arguments and errors as `NeighbourFile`."""
    file = NeighbourFile(path, queries, gallery)
    parts = np.array_split(np.arange(queries), max(1, -(-queries // AT_ONCE)))
    indices, similarities = (
        np.concatenate([read(part) for part in parts]) for read in (file.indices, file.similarities)
    )
    return Neighbours(indices, similarities, np.zeros(indices.shape, dtype=bool))


def write_neighbours(path: Path, neighbours: Neighbours) -> None:
    """Write lists as `read_neighbours` reads them, atomically."""
    table = np.stack([neighbours.similarities, neighbours.indices]).astype(np.float64)
    with atomic(path) as temporary:
        temporary.write_bytes(pickle.dumps(table, protocol=4))
