"""Which benchmark a command works on; the benchmark's own settings are bound under its own name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gin

from backbones.settings import check_types
from experiments.configuration import SETTINGS
from locore.datasets import Benchmark, ImageSet, benchmarks


@gin.configurable
@dataclass
class Data:
    """A registered benchmark with its settings.

    Attributes:
        benchmark: its name. settings: what is bound under this name.
    """

    benchmark: str = "glyphs"
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self):
        check_types(self)
        benchmarks.entry(self.benchmark)
        self.settings = SETTINGS[self.benchmark]()
        benchmarks.check(self.benchmark, **self.settings)

    def load(self) -> Benchmark:
        """The benchmark.

        Raises:
            ValueError: what it is read from is missing or damaged.
        """
        return benchmarks.create(self.benchmark, **self.settings)

    def training_images(self, benchmark: Benchmark) -> ImageSet:
        """Those of the benchmark.

        Raises:
            ValueError: it has none.
        """
        if benchmark.train is None:
            raise ValueError(
                f"The benchmark '{self.benchmark}' has no training images; give a trained Experiment.reranker."
            )
        return benchmark.train
