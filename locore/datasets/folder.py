"""Any folder or zip with one sub-folder a class: the first half of the classes trains, the second half tests."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

import numpy as np

from locore.datasets._images import FileImages, image_files
from locore.datasets.benchmark import Benchmark, benchmarks

log = logging.getLogger(__name__)
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@benchmarks.register("folder")
def folder(path: str, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval over the second half of the classes, in the sorted order of their folders' names.

    Args:
        path: a folder, or a zip of one. The class of an image is the folder that it lies in; folders of one name below
            `train`, `val` and `test` are one class.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: the path is missing or not a zip, or has fewer than four classes.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(
            f"There is no folder or zip at '{root}'; set folder.path to one with a sub-folder for each class."
        )
    entries = image_files(root)
    for name, _ in entries:
        if name != name.encode(errors="ignore").decode():
            raise ValueError(f"The name of {name!r} in {root} is not UTF-8; rename it.")
    folders = [PurePosixPath(name).parent for name, _ in entries]
    if folders and all(len(each.parts) > 1 and each.parts[0].lower() in SPLITS for each in folders):
        log.warning(
            "The folders %s of %s are parts of one data set here: folders of one name in them are one class, and half "
            "of the classes trains.",
            ", ".join(sorted({each.parts[0] for each in folders})),
            root,
        )
        folders = [PurePosixPath(*each.parts[1:]) for each in folders]
    classes = sorted(set(map(str, folders)))
    if len(classes) < 4:
        raise ValueError(
            f"{root} has {len(entries)} images in {len(classes)} sub-folders; a benchmark needs one sub-folder a class "
            "and at least four classes."
        )
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[str(each)] for each in folders])
    train, test = (
        FileImages(root, [entries[i][0] for i in rows], labels[rows], [entries[i][1] for i in rows])
        for rows in (np.flatnonzero(labels < len(classes) // 2), np.flatnonzero(labels >= len(classes) // 2))
    )
    return Benchmark.leave_one_out(root.stem, train, test, max_queries)
