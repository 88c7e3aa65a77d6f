"""The common form of every data set: image sets and the right answers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from backbones.registry import Registry
from locore.metrics.suites import MetricLearning, Suite

RIGHT, WRONG, JUNK = 1, 0, -1  # an image as an answer
USUAL = MetricLearning()
NOBODY = -1  # class of an image of which no class is known
benchmarks: Registry[Benchmark] = Registry("benchmark", "locore.datasets", "locore.benchmarks")


class ImageSet(ABC):
    """Images in a fixed order.

    Attributes:
        names: one for each image, for people and files.
        labels: (N,) int64 class of each image.
        fingerprint: changes whenever a pixel may have changed; descriptors are cached under it.
        suite: the metrics of a validation on some of the images.
    """

    names: Sequence[str]
    labels: np.ndarray
    fingerprint: str
    suite: Suite = MetricLearning((1, 10))

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return an image, RGB.

        Raises:
            ValueError: the image cannot be read; the message names it.
        """

    def judged(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Judge images as answers to other ones, as the protocol of the benchmark does.

        Args:
            rows: (M,) of the images that ask.
            others: (M, K) of the images that answer.

        Returns:
            (M, K) int8, `RIGHT`, `WRONG` or `JUNK`; without a protocol of its own, images of one class are right.
        """
        return (self.labels[others] == self.labels[rows][:, None]).astype(np.int8)

    def answers(self, rows: np.ndarray) -> Relevance:
        """Return the answers among all images to some of them, which are in no answer of their own."""
        everyone = np.arange(len(self))
        found = [self.judged(np.array([row]), everyone[None])[0] for row in rows]
        positive = [np.flatnonzero((each == RIGHT) & (everyone != row)) for row, each in zip(rows, found, strict=True)]
        junk = [np.flatnonzero(each == JUNK) for each in found]
        return Relevance(positive, junk, junk)

    def subset(self, indices: np.ndarray) -> Subset:
        """Return some of the images, in the order given."""
        return Subset(self, indices)

    def fingerprint_of(self, rows: np.ndarray) -> str:
        """Return the fingerprint of some of the images (M,), which need not change with the others."""
        return hashlib.sha256(self.fingerprint.encode() + rows.tobytes()).hexdigest()


class Subset(ImageSet):
    """Rows of another image set."""

    def __init__(self, base: ImageSet, indices: np.ndarray):
        self.base, self.indices = base, np.asarray(indices, dtype=np.int64)
        self.names = [base.names[i] for i in self.indices]
        self.labels, self.suite = base.labels[self.indices], base.suite

    def judged(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        return self.base.judged(self.indices[rows], self.indices[others])

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256(self.base.fingerprint.encode() + self.indices.tobytes()).hexdigest()

    def fingerprint_of(self, rows: np.ndarray) -> str:
        return self.base.fingerprint_of(self.indices[rows])

    def image(self, index: int) -> Image.Image:
        return self.base.image(int(self.indices[index]))


class Joined(ImageSet):
    """Several image sets in a row."""

    def __init__(self, *parts: ImageSet):
        self.parts = parts
        self.names = [name for part in parts for name in part.names]
        self.labels = np.concatenate([part.labels for part in parts])
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256("".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    def fingerprint_of(self, rows: np.ndarray) -> str:
        starts, of = self._ends - [len(part) for part in self.parts], np.searchsorted(self._ends, rows, side="right")
        known = [part.fingerprint_of(rows[of == i] - starts[i]) for i, part in enumerate(self.parts) if (of == i).any()]
        return hashlib.sha256("".join(known).encode()).hexdigest()

    def image(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part].image(index - (int(self._ends[part - 1]) if part else 0))


@dataclass(frozen=True)
class Relevance:
    """The answers of one protocol as gallery indices of each query; images that are neither positive nor junk are
    wrong.

    Attributes:
        positive: right images.
        junk: images that do not count: they are removed from a ranking before it is measured.
        demoted: images that are moved to the end of the list before it is cut to the candidates, so that they are not
            re-ranked.
    """

    positive: list[np.ndarray]
    junk: list[np.ndarray]
    demoted: list[np.ndarray]

    @classmethod
    def from_labels(cls, queries: np.ndarray, gallery: np.ndarray, self_index: np.ndarray | None = None) -> Relevance:
        """Build the answers in which images of the query's class are positive, and nothing is junk.

        Args:
            queries: (Q,) labels.
            gallery: (N,) labels.
            self_index: (Q,) each query's own index in the gallery; None if queries are not in it.
        """
        order = np.argsort(gallery, kind="stable")
        low, high = (np.searchsorted(gallery[order], queries, side) for side in ("left", "right"))
        positive = [np.sort(order[a:b]) for a, b in zip(low, high, strict=True)]
        if self_index is not None:
            positive = [p[p != own] for p, own in zip(positive, self_index, strict=True)]
        return cls.without_junk(positive)

    def of(self, rows: np.ndarray) -> Relevance:
        """Return the answers of some queries."""
        return Relevance(*([each[i] for i in rows] for each in (self.positive, self.junk, self.demoted)))

    @classmethod
    def without_junk(cls, positive: list[np.ndarray]) -> Relevance:
        """Build the answers in which these images are positive and all others are wrong."""
        nothing = [np.empty(0, dtype=np.int64)] * len(positive)
        return cls(positive, nothing, nothing)


Answers = Relevance | Callable[[np.ndarray], Relevance]


@dataclass(frozen=True)
class Benchmark:
    """Queries, the gallery that is searched, and the right answers.

    Attributes:
        name: of the benchmark, for people.
        train: images of classes that are in neither queries nor gallery; None if there are none.
        queries: the queries of all protocols.
        gallery: all images searched.
        protocols: the right answers by name of the protocol; where they depend on the shortlists, a function of these,
            (Q, K) gallery indices.
        self_index: (Q,) each query's own index in the gallery, left out of its list; None if queries are not in it.
        suite: the metrics.
        validation: its queries are for choosing settings, and none of its numbers is a test result.
    """

    name: str
    train: ImageSet | None
    queries: ImageSet
    gallery: ImageSet
    protocols: Mapping[str, Answers]
    self_index: np.ndarray | None = None
    suite: Suite = field(default_factory=MetricLearning)
    validation: bool = False

    def asked_by_half(self, half: str) -> Benchmark:
        """Return the benchmark whose queries are those of every second class; the gallery stays whole.

        Args:
            half: "even" or "odd", places of the classes in their order.

        Raises:
            ValueError: the answers depend on the shortlists, or there are fewer than two classes.
        """
        known = np.unique(self.queries.labels)
        rows = np.flatnonzero(np.isin(self.queries.labels, known[("even", "odd").index(half) :: 2]))
        protocols = {name: each.of(rows) for name, each in self.protocols.items() if isinstance(each, Relevance)}
        if len(known) < 2 or len(protocols) < len(self.protocols):
            raise ValueError(f"The queries of '{self.name}' cannot be halved by class; leave Data.asked at 'all'.")
        return replace(
            self,
            queries=self.queries.subset(rows),
            protocols=protocols,
            self_index=None if self.self_index is None else self.self_index[rows],
        )

    @property
    def fingerprint(self) -> str:
        """Changes with the images that ask and are searched."""
        return hashlib.sha256(f"{self.queries.fingerprint} {self.gallery.fingerprint}".encode()).hexdigest()

    @classmethod
    def leave_one_out(
        cls,
        name: str,
        train: ImageSet,
        test: ImageSet,
        max_queries: int | None = None,
        suite: Suite = USUAL,
    ) -> Benchmark:
        """Build a benchmark in which every test image with a second one of its class is a query for the others.

        Args:
            name: of the benchmark.
            train: training images.
            test: test images, which are both queries and gallery.
            max_queries: use a fixed random draw of so many queries; None = all.
            suite: the metrics.

        Raises:
            ValueError: no test class has two images.
        """
        counts = np.unique(test.labels, return_inverse=True, return_counts=True)
        index = np.flatnonzero(counts[2][counts[1]] > 1)
        if not len(index):
            raise ValueError(f"Benchmark '{name}' has no test class with two images, so there are no queries.")
        if max_queries is not None and max_queries < len(index):
            index = np.sort(np.random.default_rng(0).choice(index, max_queries, replace=False))
        queries = test.subset(index)
        return cls(
            name=name,
            train=train,
            queries=queries,
            gallery=test,
            protocols={"all": Relevance.from_labels(queries.labels, test.labels, index)},
            self_index=index,
            suite=suite,
        )
