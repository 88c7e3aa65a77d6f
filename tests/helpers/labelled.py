"""Benchmarks of labels alone, without images."""

import numpy as np

from locore.datasets import Benchmark, ImageSet, Relevance
from locore.metrics.suites import MetricLearning, Suite


class Labelled(ImageSet):
    """Images of which only the labels are known."""

    fingerprint = "labels"

    def __init__(self, labels: np.ndarray):
        self.labels, self.names = labels, [f"image {number}" for number in range(len(labels))]

    def image(self, index: int):
        raise ValueError("there is no image")


def labelled_benchmark(
    queries: np.ndarray, gallery: np.ndarray, own: np.ndarray | None = None, suite: Suite | None = None
) -> Benchmark:
    """A benchmark in which images of the query's class are right."""
    answers = Relevance.from_labels(queries, gallery, own)
    sets = Labelled(queries), Labelled(gallery)
    return Benchmark("labels", None, *sets, {"all": answers}, own, suite or MetricLearning((1,)))
