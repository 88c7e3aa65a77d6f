"""Any folder or zip with one sub-folder a class: the first half of the classes trains, the second half tests."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from locore.datasets._images import FileImages
from locore.datasets.benchmark import Benchmark, benchmarks

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@benchmarks.register("folder")
def folder(path: str, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval over the second half of the classes, in the sorted order of their folders' names.

    Args:
        path: a folder, or a zip of one. The class of an image is the folder that it lies in.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: the path is missing or not a zip, or has fewer than four classes.
    """
    root = Path(path).expanduser()
    entries = _entries(root)
    for name, _ in entries:
        if name != name.encode(errors="ignore").decode():
            raise ValueError(f"The name of {name!r} in {root} is not UTF-8; rename it.")
    classes = sorted({str(PurePosixPath(name).parent) for name, _ in entries})
    if len(classes) < 4:
        raise ValueError(
            f"{root} has {len(entries)} images in {len(classes)} sub-folders; a benchmark needs one sub-folder a class "
            "and at least four classes."
        )
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[str(PurePosixPath(name).parent)] for name, _ in entries])
    train, test = (
        FileImages(root, [entries[i][0] for i in rows], labels[rows], [entries[i][1] for i in rows])
        for rows in (np.flatnonzero(labels < len(classes) // 2), np.flatnonzero(labels >= len(classes) // 2))
    )
    return Benchmark.leave_one_out(root.stem, train, test, max_queries)


def _entries(root: Path) -> list[tuple[str, tuple[int, int]]]:
    """List name and (size, checksum or time of change) of every image, sorted by name."""
    if root.is_dir():
        files = [(p.relative_to(root).as_posix(), p) for p in root.rglob("*")]
        kept = [(name, p.stat()) for name, p in files if _is_image(name) and p.is_file()]
        return sorted((name, (stat.st_size, stat.st_mtime_ns)) for name, stat in kept)
    if not root.exists():
        raise ValueError(
            f"There is no folder or zip at '{root}'; set folder.path to one with a sub-folder for each class."
        )
    try:
        with zipfile.ZipFile(root) as archive:
            return sorted(
                (info.filename, (info.file_size, info.CRC)) for info in archive.infolist() if _is_image(info.filename)
            )
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{root}' is neither a folder nor a readable zip ({error}).") from error


def _is_image(name: str) -> bool:
    """Return whether a file is an image of a class: in a sub-folder, not hidden, not one that macOS adds to a zip."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and len(path.parts) > 1 and not hidden
