"""The metrics that a benchmark reports of every query: one class for each kind of benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from locore.metrics.retrieval import landmark_metrics, map_at, map_at_r, r_precision, recall_at


class Suite(Protocol):
    """The metrics of a benchmark.

    Attributes:
        main: name of the deciding metric.
        shown: names of the metrics that a comparison shows, `main` last.
    """

    @property
    def main(self) -> str: ...

    @property
    def shown(self) -> tuple[str, ...]: ...

    def depth(self, positives: np.ndarray, most: int) -> int:
        """Return how deep rankings of `most` images must be for queries with so many positives (Q,)."""
        ...

    def __call__(self, right: np.ndarray, junk: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric (Q,) by name, given right and junk (Q, depth) bool and positives (Q,) in the whole
        gallery.
        """
        ...


@dataclass(frozen=True)
class MetricLearning:
    """R@k, mAP@R and R-precision; nothing is junk.

    Attributes:
        ks: of the recalls.
        as_published: also mAP@R as LOCORE's published code counts it, "mAP@R+1": R counts the query itself too.
    """

    ks: tuple[int, ...] = (1, 10, 100)
    as_published: bool = False

    main = "mAP@R"

    @property
    def shown(self) -> tuple[str, ...]:
        return (*(f"R@{k}" for k in self.ks[:2]), "mAP@R")

    def depth(self, positives: np.ndarray, most: int) -> int:
        return max(min(max(self.ks, default=0), most), min(int(positives.max()) + self.as_published, most))

    def __call__(self, right: np.ndarray, junk: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
        return {
            **{f"R@{k}": recall_at(right, k) for k in self.ks},
            "mAP@R": map_at_r(right, positives),
            "R-precision": r_precision(right, positives),
            **({"mAP@R+1": map_at_r(right, positives + 1)} if self.as_published else {}),
        }


@dataclass(frozen=True)
class Revisited:
    """mAP and mP@1, 5, 10 of Revisited Oxford and Paris (Radenović et al. 2018), measured after junk is removed."""

    main = "mAP"
    shown = ("mP@1", "mP@10", "mAP")

    def depth(self, positives: np.ndarray, most: int) -> int:
        return most

    def __call__(self, right: np.ndarray, junk: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
        precision, at = landmark_metrics(right, junk, positives, (1, 5, 10))
        return dict(zip(("mAP", "mP@1", "mP@5", "mP@10"), (precision, *at), strict=True))


@dataclass(frozen=True)
class MapAt:
    """mAP@k, as of Google Landmarks v2 (k = 100) and ILIAS (k = 1000), measured after junk is removed.

    Attributes:
        k: depth that counts.
        most_junk: largest number of junk images of a query, by which rankings are deeper.
    """

    k: int
    most_junk: int = 0

    @property
    def main(self) -> str:
        return f"mAP@{self.k}"

    @property
    def shown(self) -> tuple[str, ...]:
        return (self.main,)

    def depth(self, positives: np.ndarray, most: int) -> int:
        return min(self.k + self.most_junk, most)

    def __call__(self, right: np.ndarray, junk: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
        without = np.take_along_axis(right, np.argsort(junk, axis=1, kind="stable"), axis=1)  # junk comes last
        return {self.main: map_at(without, positives, self.k)}
