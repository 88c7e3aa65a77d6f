"""Grocery Store data set (Klasson et al. 2019): photographs by phone of 81 fruits, vegetables and packages in shops.

Even class numbers train, odd ones are searched.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from locore.datasets._images import FileImages, image_files
from locore.datasets._metric_learning import check_counts, missing
from locore.datasets.benchmark import Benchmark, Relevance, benchmarks
from locore.metrics.suites import MetricLearning

SOURCE = "https://github.com/marcusklasson/GroceryStoreDataset"
LISTS = ("train", "val", "test")
FOLDERS = (
    "dataset",
    "GroceryStoreDataset/dataset",
    ".",
)  # in the cloned repository, beside it, and in `dataset` itself


@benchmarks.register("groceries")
def groceries(root: str, max_queries: int | None = None) -> Benchmark:
    """Retrieval of products and fruits that are not in the training, under two protocols.

    "visits": the test photographs ask for the training and validation photographs, which were taken on other visits to
    a shop. "leave-one-out": every photograph asks for all others; many were taken in bursts, so that the nearest is
    easily found.

    Args:
        root: the cloned repository, or a zip of it.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    folder = Path(root).expanduser()
    if not folder.exists():
        raise missing("groceries", folder, folder, SOURCE)
    files = dict(image_files(folder))
    names, labels, part = _listed(folder, files)
    images = FileImages(folder, names, labels, [files[name] for name in names])
    train, gallery = (images.subset(np.flatnonzero(labels % 2 == parity)) for parity in (0, 1))
    check_counts("groceries", "train", train, 2_781, 41)
    check_counts("groceries", "test", gallery, 2_640, 40)
    if not len(gallery):
        raise ValueError(f"The lists of groceries in '{folder}' name no photograph of an odd class.")
    rows = np.arange(len(gallery))
    if max_queries is not None:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:max_queries])
    answers = {"visits": _visits(gallery.labels, part[gallery.indices], rows)}
    answers["leave-one-out"] = Relevance.from_labels(gallery.labels[rows], gallery.labels, rows)
    suite = MetricLearning((1, 10, 100))
    return Benchmark("groceries", train, gallery.subset(rows), gallery, answers, self_index=rows, suite=suite)


def _visits(labels: np.ndarray, part: np.ndarray, rows: np.ndarray) -> Relevance:
    """Build the answers of the protocol "visits".

    Args:
        labels: (N,) of the gallery.
        part: (N,) number of the list that names each image.
        rows: (Q,) the queries' rows in the gallery.
    """
    test = part == LISTS.index("test")
    positive = [np.flatnonzero((labels == labels[row]) & ~test) if test[row] else np.empty(0, int) for row in rows]
    other_queries = [np.setdiff1d(np.flatnonzero(test), row) for row in rows]
    return Relevance(positive, other_queries, other_queries)


def _listed(root: Path, files: dict[str, tuple[int, int]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read name, class and list of every photograph."""
    names, labels, part = [], [], []
    for number, name in enumerate(LISTS):
        below, text = _text(root, f"{name}.txt")
        for line in text.splitlines():
            match [each.strip() for each in line.split(",")]:
                case [path, label, coarse] if label.isdigit() and coarse.isdigit():
                    names.append((Path(below) / path).as_posix())
                    labels.append(int(label))
                    part.append(number)
                case _:
                    raise ValueError(
                        f"{name}.txt of groceries in '{root}' is damaged at the line {line!r}; get it again from "
                        f"{SOURCE}."
                    )
            if names[-1] not in files:
                raise missing("groceries", root / names[-1], root, SOURCE)
    return names, np.array(labels, dtype=np.int64), np.array(part)


def _text(root: Path, name: str) -> tuple[str, str]:
    """Read a list of the data set; returns the folder that it was found in, below root, and its text."""
    for below in FOLDERS:
        inside = (Path(below) / name).as_posix()
        try:
            if root.is_dir():
                return below, (root / inside).read_text()
            with zipfile.ZipFile(root) as archive:
                return below, archive.read(inside).decode()
        except (FileNotFoundError, KeyError):
            continue
    raise missing("groceries", root / FOLDERS[0] / name, root, SOURCE)
