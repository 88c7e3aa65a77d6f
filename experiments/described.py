"""Descriptors that someone has extracted already, in the files of AMES and LOCORE."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import gin
import numpy as np

from locore.datasets import Benchmark
from locore.descriptors import ames
from locore.descriptors.ames import Joined, Locals, Stored


@gin.configurable
@dataclass(frozen=True)
class Files:
    """Where the descriptors of queries and gallery are; they are read as they are needed.

    Attributes:
        root: the folder that the others are below.
        query_global, gallery_global: raw float32. query_local, gallery_local: HDF5.
        count: L, how many of an image's local descriptors are used.
        distractor_global, distractor_local: of images that follow the gallery's; None = they are in its files.
        train_global, train_local: of the training images; None = nothing is trained.
        train_neighbours: a pickle with their neighbours; None = they are searched.
    """

    query_global: str
    query_local: str
    gallery_global: str
    gallery_local: str
    count: int
    root: str = "."
    distractor_global: str | None = None
    distractor_local: str | None = None
    train_global: str | None = None
    train_local: str | None = None
    train_neighbours: str | None = None

    def __post_init__(self):
        for what in ("distractor", "train"):
            if (getattr(self, f"{what}_global") is None) != (getattr(self, f"{what}_local") is None):
                raise ValueError(f"Files.{what}_global and Files.{what}_local go together.")

    @property
    def widths(self) -> tuple[int, int]:
        """Of a global and of a local descriptor."""
        return ames.widths(self._path(self.gallery_global), self._path(self.gallery_local))

    def tables(self, benchmark: Benchmark) -> tuple[Stored, Stored | Joined]:
        """Of the queries and of the gallery.

        Raises:
            ValueError: a file is missing, or another one's.
        """
        queries = self._stored(self.query_global, self.query_local, len(benchmark.queries))
        if self.distractor_global and self.distractor_local:
            behind = ames.described(self._path(self.distractor_local))
            gallery = self._stored(self.gallery_global, self.gallery_local, len(benchmark.gallery) - behind)
            distractors = self._stored(self.distractor_global, self.distractor_local, behind)
            _alike("gallery", gallery, "distractors", distractors)
            _alike("queries", queries, "gallery", gallery)
            return queries, Joined(gallery, distractors)
        gallery = self._stored(self.gallery_global, self.gallery_local, len(benchmark.gallery))
        _alike("queries", queries, "gallery", gallery)
        return queries, gallery

    def training(self, images: int) -> Stored:
        """Of so many training images; errors as `tables`."""
        if not self.train_global or not self.train_local:
            raise ValueError(
                "There are no descriptors to train on; give Files.train_global and train_local, or Experiment.reranker."
            )
        return self._stored(self.train_global, self.train_local, images)

    def neighbours(self, images: int) -> np.ndarray | None:
        """(images, topk) of the training images, where there is a file of them."""
        if not self.train_neighbours:
            return None
        return ames.read_neighbours(self._path(self.train_neighbours), images, images).indices

    def _path(self, name: str) -> Path:
        return Path(self.root, Path(name).expanduser()).expanduser()

    def _stored(self, globals_: str, locals_: str, images: int) -> Stored:
        return Stored(ames.read_globals(self._path(globals_), images), Locals(self._path(locals_), images, self.count))

    @cached_property
    def said(self) -> str:
        """The files as lines of a configuration: another size or time is another file."""
        paths = [self._path(name) for name in astuple(self) if isinstance(name, str)]
        stats = [(path, path.stat()) for path in paths if path.is_file()]
        return "".join(f"# {path}: {stat.st_size} bytes, changed {stat.st_mtime_ns}\n" for path, stat in stats)


def _alike(one: str, ours: Stored, other: str, theirs: Stored) -> None:
    """Refuse tables of different widths."""
    for what, width, found in (
        ("global", ours.globals_.shape[1], theirs.globals_.shape[1]),
        ("local", ours.locals_.width, theirs.locals_.width),
    ):
        if width != found:
            raise ValueError(f"The {what} descriptors of the {one} are {width} wide and those of the {other} {found}.")
