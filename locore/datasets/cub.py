"""CUB-200-2011 (Wah et al. 2011): classes are species of birds, the first 100 train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from locore.datasets._metric_learning import check_counts, missing, packaged
from locore.datasets.benchmark import Benchmark, benchmarks
from locore.metrics.suites import MetricLearning

SOURCE = "https://www.vision.caltech.edu/datasets/cub_200_2011"


@benchmarks.register("cub")
def cub(root: str, download: bool = False, crop: bool = False, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval among the images of the last 100 classes.

    Args:
        root: the folder that contains `CUB_200_2011`.
        download: fetch it (1 GB) if root is missing or empty.
        crop: cut every image to its bounding box.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    from pytorch_metric_learning.datasets.cub import CUB  # scipy comes with it, so only when it is asked for

    folder = Path(root).expanduser()
    train, test = packaged("cub", CUB, folder, download, SOURCE)
    if crop:
        train, test = (images.cut(_boxes(folder, images.names)) for images in (train, test))
    check_counts("cub", "train", train, 5_864, 100)
    check_counts("cub", "test", test, 5_924, 100)
    return Benchmark.leave_one_out("cub", train, test, max_queries, MetricLearning((1, 2, 4, 8), as_published=True))


def _boxes(root: Path, wanted: Sequence[str]) -> np.ndarray:
    """Return (N, 4) left, top, right and bottom of the bird in each of the wanted images, named below root."""
    folder = root / "CUB_200_2011"
    try:
        numbers = {name: number for number, name in map(str.split, _lines(folder / "images.txt"))}
        boxes = {number: corners for number, *corners in map(str.split, _lines(folder / "bounding_boxes.txt"))}
        rows = [boxes[numbers[name.removeprefix("CUB_200_2011/images/")]] for name in wanted]
        left, top, width, height = np.array(rows, dtype=float).T
        return np.stack([left, top, left + width, top + height], axis=1)
    except FileNotFoundError as error:
        raise missing("cub", Path(error.filename), root, SOURCE) from error
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"'{folder}/bounding_boxes.txt' does not fit images.txt ({error!r}); unpack both again from {SOURCE}."
        ) from error


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
