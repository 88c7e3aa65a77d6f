"""Stanford Online Products (Song et al. 2016): classes are products, images are photographs of their sellers."""

from __future__ import annotations

from pathlib import Path

from locore.datasets._metric_learning import check_counts, packaged
from locore.datasets.benchmark import Benchmark, benchmarks
from locore.metrics.suites import MetricLearning

SOURCE = "https://cvgl.stanford.edu/projects/lifted_struct"


@benchmarks.register("sop")
def sop(root: str, download: bool = False, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval among the test images.

    Args:
        root: the folder that contains `Stanford_Online_Products`.
        download: fetch it (3 GB) if root is missing or empty.
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    from pytorch_metric_learning.datasets.sop import (
        StanfordOnlineProducts,  # scipy comes with it, so only when it is asked for
    )

    train, test = packaged("sop", StanfordOnlineProducts, Path(root).expanduser(), download, SOURCE)
    check_counts("sop", "train", train, 59_551, 11_318)
    check_counts("sop", "test", test, 60_502, 11_316)
    return Benchmark.leave_one_out(
        "sop", train, test, max_queries, MetricLearning((1, 10, 100, 1000), as_published=True)
    )
