"""CUB-200-2011 (Wah et al. 2011): classes are species of birds, the first 100 train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pytorch_metric_learning.datasets.cub import CUB

from locore.datasets.benchmark import Benchmark, benchmarks
from locore.datasets.images import FileImages
from locore.datasets.published import check_counts, missing, packaged

SOURCE = "https://www.vision.caltech.edu/datasets/cub_200_2011"


@benchmarks.register("cub")
def cub(root: str, download: bool = False, crop: bool = False, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval among the images of the last 100 classes.

    Args:
        root: the folder in which `CUB_200_2011` is. download: fetch it (1 GB) if root is missing or empty.
        crop: cut every image to its bounding box. max_queries: ask a fixed draw of so many queries.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    folder = Path(root).expanduser()
    train, test = packaged("cub", CUB, folder, download, SOURCE)
    if crop:
        boxes = _boxes(folder)
        train, test = (_cropped(images, boxes) for images in (train, test))
    check_counts("cub", "train", train, 5_864, 100)
    check_counts("cub", "test", test, 5_924, 100)
    return Benchmark.leave_one_out("cub", train, test, max_queries, ks=(1, 2, 4, 8))


def _cropped(images: FileImages, boxes: dict[str, np.ndarray]) -> FileImages:
    return images.cut(np.stack([boxes[name] for name in images.names]))


def _boxes(root: Path) -> dict[str, np.ndarray]:
    """Left, top, right and bottom of the bird in every image, by the image's name below root."""
    folder = root / "CUB_200_2011"
    try:
        names = dict(line.split() for line in (folder / "images.txt").read_text().splitlines())
        boxes = [line.split() for line in (folder / "bounding_boxes.txt").read_text().splitlines()]
        corners = {image: np.array([x, y, width, height], dtype=float) for image, x, y, width, height in boxes}
        return {
            f"CUB_200_2011/images/{names[image]}": np.concatenate([b[:2], b[:2] + b[2:]])
            for image, b in corners.items()
        }
    except FileNotFoundError as error:
        raise missing("cub", Path(error.filename), root, SOURCE) from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"'{folder}/bounding_boxes.txt' is damaged ({error}); unpack it again.") from error
