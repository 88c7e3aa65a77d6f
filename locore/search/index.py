"""An index of a folder of photos: the descriptors of all of them in one file, which grows as photos are added."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from locore.datasets._images import UNREAD, files_below, is_readable, is_unread
from locore.descriptors import Descriptors, Extractor
from locore.descriptors.image_cache import open_image
from locore.utils.files import atomic, cache_folder
from locore.utils.progress import track

SAVED = 2048  # photos described between two writings of the file


@dataclass(frozen=True)
class Index:
    """Photos that can be searched.

    Attributes:
        names: (N,) paths below the folder.
        descriptors: of the photos.
        unreadable: path and reason of each photo that is left out.
    """

    names: list[str]
    descriptors: Descriptors
    unreadable: dict[str, str]

    def nearest(self, query: Descriptors, count: int) -> tuple[Tensor, Tensor]:
        """Return similarities and indices (count,) of the photos most similar to one query (1, …), best first."""
        similarities = self.descriptors.global_descriptor.float() @ query.global_descriptor[0].float()
        return similarities.topk(min(count, len(self.names)))


def index(folder: Path, extractor: Extractor) -> Index:
    """Index a folder and all folders below it; photos that were described before, and have not changed, are not again.

    Args:
        folder: of the photos.
        extractor: of the descriptors.

    Raises:
        ValueError: there is no such folder, or it has no readable photo.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder of photos at '{folder}'.")
    paths = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    stats = {name: path.stat() for name, path in sorted(paths.items()) if is_readable(name)}
    versions = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    file = cache_folder() / "indexes" / f"{name}-{extractor.fingerprint}.npz"
    known = {n: d for n, (version, d) in _read(file).items() if versions.get(n) == version}
    new, unsaved = [n for n in versions if n not in known], 0
    unreadable = {name: UNREAD for name in sorted(paths) if is_unread(name)}
    for part, failed in _described(folder, new, extractor):
        known |= part
        unreadable |= failed
        unsaved += len(part)
        if unsaved >= SAVED:
            _write(file, known, versions)
            unsaved = 0
    names = sorted(known)
    if not names:
        left_out = f"; {len(unreadable)} cannot be read, such as '{min(unreadable)}'" if unreadable else ""
        raise ValueError(f"'{folder}' has no readable photo{left_out}.")
    if new:
        _write(file, known, versions)
    return Index(names, Descriptors.stack([known[n] for n in names]), unreadable)


def _described(
    folder: Path, names: list[str], extractor: Extractor
) -> Iterator[tuple[dict[str, Descriptors], dict[str, str]]]:
    """Yield, in batches, the descriptors of each photo, and the reasons why others have none."""
    if not names:
        return
    for start in track(range(0, len(names), extractor.batch_size), "indexing"):
        images, failed = {}, {}
        for name in names[start : start + extractor.batch_size]:
            try:
                name.encode()
                images[name] = open_image(folder / name)
            except UnicodeEncodeError:
                failed[repr(name)] = "its name is not UTF-8; rename it"
            except ValueError as error:
                failed[name] = str(error)
        if images:
            found = extractor.describe(list(images.values()))
            yield {name: found[row] for row, name in enumerate(images)}, failed
        else:
            yield {}, failed


def _write(file: Path, known: dict[str, Descriptors], versions: dict[str, tuple[int, int]]) -> None:
    names = sorted(known)
    together = Descriptors.stack([known[name] for name in names])
    with atomic(file) as temporary, open(temporary, "wb") as opened_file:
        np.savez(opened_file, names=names, versions=np.array([versions[n] for n in names]), **together.arrays())  # type: ignore[arg-type]


def _read(file: Path) -> dict[str, tuple[tuple[int, int], Descriptors]]:
    """Read version and descriptors of each photo in the file; nothing if it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names, versions = arrays["names"].tolist(), arrays["versions"].tolist()
            together = Descriptors.from_arrays(arrays)
        rows = enumerate(zip(names, versions, strict=True))
        return {name: (tuple(version), together[row]) for row, (name, version) in rows}
    except Exception:  # a damaged zip fails in many ways
        return {}
