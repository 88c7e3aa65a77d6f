"""Google Landmarks v2 (Weyand et al. 2020): queries of the retrieval challenge against its index, by mAP@100."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np

from backbones.registry import suggest
from locore.datasets._images import FileImages
from locore.datasets._metric_learning import missing
from locore.datasets._train_list import read_list
from locore.datasets.benchmark import NOBODY, Benchmark, ImageSet, Relevance, benchmarks
from locore.metrics.suites import MapAt

log = logging.getLogger(__name__)

SOURCE = "https://github.com/cvdfoundation/google-landmark"
SOLUTION, INDEX = "retrieval_solution_v2.1.csv", "index.csv"
PARTS = {"public": 379, "private": 750}  # the first is for validation, the second for the test
IMAGES = 761_757


@benchmarks.register("gldv2")
def gldv2(
    root: str, part: str = "public", train_list: str | None = None, exclude_landmarks: tuple[int, ...] = ()
) -> Benchmark:
    """Queries of one part against the index.

    Args:
        root: the folder with `retrieval_solution_v2.1.csv` and `index.csv`, and, if descriptors are to be extracted,
            `index`, `test` and `train`, each image in three folders named by the first letters of its id.
        part: "public" (validation) or "private" (test).
        train_list: training images, `path,landmark_id,w,h` a line with paths below root; None = no training images.
        exclude_landmarks: landmarks that are not trained on; some of the clean list are in Oxford and Paris.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if not isinstance(exclude_landmarks, list | tuple) or any(
        not isinstance(landmark, int) for landmark in exclude_landmarks
    ):
        raise ValueError(
            f"gldv2.exclude_landmarks = {exclude_landmarks!r} must be numbers of landmarks, such as (123, 456)."
        )
    if part not in PARTS:
        raise ValueError(f"Unknown gldv2.part '{part}'{suggest(part, PARTS)}")
    folder = Path(root).expanduser()
    index = [row["id"] for row in _table(folder, INDEX, {"id"})]
    places = {name: place for place, name in enumerate(index)}
    solution = _table(folder, SOLUTION, {"id", "images", "Usage"})
    every = [
        row for name in PARTS for row in solution if row["Usage"].lower() == name
    ]  # as files of descriptors have them
    rows = np.array([place for place, row in enumerate(every) if row["Usage"].lower() == part], dtype=np.int64)
    asked = [every[row] for row in rows]
    try:
        positive = [np.array([places[image] for image in row["images"].split()], dtype=np.int64) for row in asked]
    except KeyError as error:
        raise ValueError(
            f"'{folder / SOLUTION}' names {error}, which is not in {INDEX}; get both files in one version."
        ) from None
    for what, found, published in (("queries", len(asked), PARTS[part]), ("images in the index", len(index), IMAGES)):
        if found != published:
            log.warning("gldv2: %d %s where %d were published; results will not compare.", found, what, published)
    return Benchmark(
        name=f"gldv2-{part}",
        train=_training(folder, Path(train_list).expanduser(), exclude_landmarks) if train_list else None,
        # Queries of one landmark are not named as such, so each is drawn by itself.
        queries=FileImages(folder, [_path("test", row["id"]) for row in every], np.arange(len(every))).subset(rows),
        gallery=FileImages(folder, [_path("index", name) for name in index], np.full(len(index), NOBODY)),
        protocols={"all": Relevance.without_junk(positive)},
        suite=MapAt(100),
        validation=part == "public",
    )


def _training(root: Path, path: Path, exclude_landmarks: tuple[int, ...]) -> ImageSet:
    names, landmarks, _ = read_list(path)
    kept = np.flatnonzero(~np.isin(landmarks, exclude_landmarks))
    unknown = set(exclude_landmarks) - set(landmarks.tolist())
    if unknown:
        log.warning("gldv2.exclude_landmarks: no image of %s is in '%s'.", ", ".join(map(str, sorted(unknown))), path)
    if not exclude_landmarks:
        log.info("gldv2: the clean list has landmarks of Oxford and Paris; leave them out to measure on these.")
    images = FileImages(root, names, landmarks)
    return images.subset(kept) if exclude_landmarks else images


def _table(root: Path, name: str, columns: set[str]) -> list[dict[str, str]]:
    """Read the rows of one of the data set's lists."""
    path = root / name
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not columns <= set(reader.fieldnames or ()):
                raise ValueError(f"'{path}' has no columns {', '.join(sorted(columns))}; get it again from {SOURCE}.")
            rows = list(reader)
            if any(row[column] is None for row in rows for column in columns) or any(
                len(row["id"]) < 3 for row in rows
            ):
                raise ValueError(f"'{path}' is incomplete; get it again from {SOURCE}.")
            if len({row["id"] for row in rows}) < len(rows):
                raise ValueError(f"'{path}' has an id twice; get it again from {SOURCE}.")
            return rows
    except FileNotFoundError:
        raise missing("gldv2", path, root, SOURCE) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is damaged ({error}); get it again from {SOURCE}.") from error


def _path(part: str, name: str) -> str:
    return f"{part}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"
