"""Training lists of AMES and LOCORE: `path,landmark_id,w,h` a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from locore.utils import files


def read_list(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read a training list, `path,landmark_id,w,h` a line.

    Returns:
        The paths, (N,) landmarks, and (N, 2) width and height.

    Raises:
        ValueError: the file is missing, or a line is different.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        raise ValueError(f"There is no training list at '{path}'.") from None
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not a text in UTF-8, so it is not a training list.") from None
    names, numbers = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *values = line.strip().rsplit(",", 3)
        if len(values) != 3 or not all(re.fullmatch(r"[0-9]{1,18}", value) for value in values):
            raise ValueError(f"Line {number} of '{path}' is not path,landmark_id,w,h: {line[:80]!r}.")
        names.append(name)
        numbers.append([int(value) for value in values])
    table = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    return names, table[:, 0], table[:, 1:]


def write_list(path: Path, names: Sequence[str], landmarks: np.ndarray, sizes: np.ndarray) -> None:
    """Write a training list as `read_list` reads it, atomically."""
    lines = (f"{name},{mark},{w},{h}\n" for name, mark, (w, h) in zip(names, landmarks, sizes, strict=True))
    files.write_text(path, "".join(lines))
