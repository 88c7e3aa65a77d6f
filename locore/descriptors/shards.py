"""Extract in parts, a file each: a kill loses at most one part, and processes share the parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from locore.descriptors.table import read_arrays, write_arrays
from locore.utils import distributed
from locore.utils.prefetch import ahead
from locore.utils.progress import track

PART = 512  # images a file
T = TypeVar("T")


def write_parts(
    images: int,
    batch: int,
    load: Callable[[range], T],
    describe: Callable[[T], tuple[np.ndarray, np.ndarray]],
    folder: Path,
    key: Callable[[range], str],
    uses_gpu: bool = False,
) -> list[tuple[Path, int]]:
    """Describe images into part files, except those that are there; each process does its share.

    Args:
        images: number of images.
        batch: images at a time.
        load: reads a range of images, ahead and by others.
        describe: turns what `load` returned into rows of `global` and `features`, see `write_arrays`.
        folder: of the files.
        key: hash of the content of a range of images, which names its file, so that changed images are described again.
        uses_gpu: `load` does.

    Returns:
        All files with their numbers of rows.
    """
    starts = range(0, images, PART)
    ends = {start: min(start + PART, images) for start in starts}
    paths = {start: folder / f"{start:09}-{key(range(start, end))}.h5" for start, end in ends.items()}
    looked_at = [start for start in distributed.share(starts) if not _whole(paths[start], ends[start] - start)]
    missing = [start for found in distributed.gathered(looked_at) for start in found]
    own = distributed.share(missing)
    batches = [range(i, min(i + batch, ends[start])) for start in own for i in range(start, ends[start], batch)]
    done = (
        sum(-(-(ends[start] - start) // batch) for start in starts if start not in set(missing)) // distributed.count()
    )
    loaded = ahead(load, batches, uses_gpu)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for part in track(batches, "extracting", done + len(batches), done):
        rows.append(describe(next(loaded)))
        start = part.start // PART * PART
        if part.stop == ends[start]:
            write_arrays(paths[start], *(np.concatenate(arrays) for arrays in zip(*rows, strict=True)))
            rows = []
    distributed.wait()
    return [(path, ends[start] - start) for start, path in paths.items()]


def _whole(path: Path, rows: int) -> bool:
    try:
        read_arrays(path, rows)
    except (FileNotFoundError, ValueError):
        return False
    return True
