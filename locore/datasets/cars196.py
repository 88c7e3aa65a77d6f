"""Cars196 (Krause et al. 2013): classes are models of cars, the first 98 train."""

from __future__ import annotations

from pathlib import Path

from locore.datasets._metric_learning import check_counts, packaged
from locore.datasets.benchmark import Benchmark, benchmarks
from locore.metrics.suites import MetricLearning

SOURCE = "https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder"


@benchmarks.register("cars196")
def cars196(root: str, download: bool = False, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval among the images of the last 98 classes.

    Args:
        root: the folder with `names.csv`, `anno_train.csv`, `anno_test.csv` and `car_data`.
        download: fetch it (2 GB) if root is missing or empty.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    from pytorch_metric_learning.datasets.cars196 import Cars196  # scipy comes with it, so only when it is asked for

    train, test = packaged("cars196", Cars196, Path(root).expanduser(), download, SOURCE)
    check_counts("cars196", "train", train, 8_054, 98)
    check_counts("cars196", "test", test, 8_131, 98)
    return Benchmark.leave_one_out("cars196", train, test, max_queries, MetricLearning((1, 2, 4, 8)))
