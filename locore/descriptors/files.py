"""Descriptors that were extracted before, in the files of AMES and LOCORE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from backbones.settings import check_types
from locore.datasets import Benchmark, ImageSet, Subset
from locore.datasets.benchmark import Joined as JoinedImages
from locore.descriptors import ames_files
from locore.descriptors.ames_files import Joined, Locals, Stored
from locore.descriptors.table import Rows, SearchedTable
from locore.retrieval import Neighbours

log = logging.getLogger(__name__)
Table = Stored | Joined | Rows
COMPARED = 50  # queries, and places of each list, by which lists are compared with descriptors
LEAST_AGREEMENT = 0.98  # correlation; half precision keeps more


@dataclass(frozen=True)
class Files:
    """Files of descriptors; they are read when they are needed.

    Attributes:
        query_global: raw float32.
        query_local: HDF5.
        gallery_global: raw float32.
        gallery_local: HDF5.
        locals_per_image: L, the number of local descriptors of each image that are used.
        root: folder that the other paths are relative to.
        shortlists: pickle with the neighbours of the queries, which may come from other global descriptors; None = they
            are searched.
        distractor_global: of images that follow the gallery's; None = they are in the gallery's files.
        distractor_local: of the same images.
        train_global: of the training images; None = nothing is trained.
        train_local: of the training images.
        train_neighbours: pickle with the neighbours of the training images; None = they are searched.
    """

    query_global: str
    query_local: str
    gallery_global: str
    gallery_local: str
    locals_per_image: int
    root: str = "."
    shortlists: str | None = None
    distractor_global: str | None = None
    distractor_local: str | None = None
    train_global: str | None = None
    train_local: str | None = None
    train_neighbours: str | None = None

    def __post_init__(self):
        check_types(self)
        for what in ("distractor", "train"):
            if (getattr(self, f"{what}_global") is None) != (getattr(self, f"{what}_local") is None):
                raise ValueError(f"Files.{what}_global and Files.{what}_local go together; give both or neither.")

    @property
    def search_settings(self) -> dict[str, str | None]:
        """Files that the shortlists follow from, by the name of their setting."""
        names = [f.name for f in fields(self) if f.name.endswith("_global") or f.name in ("root", "shortlists")]
        return {f"Files.{name}": getattr(self, name) for name in names if name != "train_global"}

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of a global and of a local descriptor."""
        return _widths(self._stored("gallery", None))

    def tables(self, benchmark: Benchmark) -> tuple[Table, Table]:
        """Return the tables of the queries and of the gallery.

        Raises:
            ValueError: a file is missing, or belongs to other images.
        """
        queries = self._table("query", benchmark.queries)
        if not self.distractor_local:
            gallery = self._table("gallery", benchmark.gallery)
            _alike("queries", queries, "gallery", gallery)
            return queries, gallery
        behind, every = ames_files.count_images(self._path(self.distractor_local)), len(benchmark.gallery)
        if behind >= every:
            raise ValueError(
                f"The distractors' files describe {behind:,} images and the gallery has {every:,} in all; give the "
                "benchmark's own option for distractors as well, such as roxford5k.distractors."
            )
        gallery, distractors = self._stored("gallery", every - behind), self._stored("distractor", behind)
        _alike("gallery", gallery, "distractors", distractors)
        _alike("queries", queries, "gallery", gallery)
        return queries, Joined(gallery, distractors)

    def neighbours_of_queries(
        self, benchmark: Benchmark, tables: tuple[SearchedTable, SearchedTable]
    ) -> Neighbours | None:
        """Return the shortlists of the queries; None if there is no file of them.

        Shortlists may come from other global descriptors, but it is more often a mistake: a warning says so.

        Args:
            benchmark: has the queries and the gallery.
            tables: their descriptors.
        """
        if not self.shortlists:
            return None
        path, queries = self._path(self.shortlists), benchmark.queries
        try:
            found = ames_files.read_neighbours(path, len(queries), len(benchmark.gallery))
        except ValueError:
            if not isinstance(queries, Subset):
                raise
            every, rows = ames_files.read_neighbours(path, len(queries.base), len(benchmark.gallery)), queries.indices
            found = Neighbours(every.indices[rows], every.similarities[rows], every.demoted[rows])
        if isinstance(benchmark.gallery, JoinedImages) and found.indices.max() < len(benchmark.gallery.parts[0]):
            raise ValueError(
                f"'{path}' has none of the distractors, so it was made without them; give Files.shortlists that were "
                "made with them."
            )
        if (agreement := _agreement(found, *tables)) < LEAST_AGREEMENT:
            log.warning(
                "The global descriptors do not give the similarities of '%s' (correlation %.2f). If both are of one "
                "model, one of the files has its images in another order.",
                path,
                agreement,
            )
        return found

    def training(self, images: ImageSet) -> Table:
        """Return the table of the training images; errors as `tables`."""
        if not self.train_global or not self.train_local:
            raise ValueError(
                "There are no descriptors to train on; give Files.train_global and train_local, or Model.checkpoint."
            )
        train = self._table("train", images)
        _alike("training images", train, "gallery", self._stored("gallery", None))
        return train

    def training_neighbours(self, images: ImageSet) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return what reads, given training images (M,), their neighbours (M, topk), -1 for images that are left out;
        None if there is no file.
        """
        if not self.train_neighbours:
            return None
        every = len(images.base) if isinstance(images, Subset) else len(images)
        file = ames_files.NeighbourFile(self._path(self.train_neighbours), every, every)
        if not isinstance(images, Subset):
            return file.indices
        rows, place = images.indices, np.full(every, -1)
        place[rows] = np.arange(len(images))
        return lambda asked: place[file.indices(rows[asked])]

    def _table(self, what: str, images: ImageSet) -> Table:
        """Return the table of images; those of a subset may be in files of their own or in files of the whole set."""
        described = ames_files.count_images(self._path(getattr(self, f"{what}_local")))
        if isinstance(images, Subset) and described == len(images.base):
            return Rows(self._stored(what, described), torch.from_numpy(images.indices))
        return self._stored(what, len(images))

    def _stored(self, what: str, images: int | None) -> Stored:
        """Return the table of so many images; None = of as many as the file has."""
        global_path, local_path = (self._path(getattr(self, f"{what}_{kind}")) for kind in ("global", "local"))
        count = ames_files.count_images(local_path) if images is None else images
        return Stored(ames_files.read_globals(global_path, count), Locals(local_path, count, self.locals_per_image))

    def _path(self, name: str) -> Path:
        return Path(self.root, Path(name).expanduser()).expanduser()

    @cached_property
    def fingerprint(self) -> str:
        """The files with size and time as comments of a configuration: a changed file makes another run."""
        paths = [self._path(name) for name in astuple(self) if isinstance(name, str)]
        stats = [(path, path.stat()) for path in paths if path.is_file()]
        return "".join(f"# {path}: {stat.st_size} bytes, changed {stat.st_mtime_ns}\n" for path, stat in stats)


def _agreement(lists: Neighbours, queries: SearchedTable, gallery: SearchedTable) -> float:
    """Return the correlation of the similarities of lists with those of descriptors, over a sample of the pairs."""
    rows = np.random.default_rng(0).permutation(len(lists.indices))[:COMPARED]
    places = np.linspace(0, lists.indices.shape[1] - 1, COMPARED, dtype=np.int64)
    images, listed = lists.indices[rows][:, places], lists.similarities[rows][:, places]
    asked = np.asarray(queries.global_matrix[rows], dtype=np.float32)
    found = np.asarray(gallery.global_matrix[images.ravel()], dtype=np.float32).reshape(*images.shape, -1)
    own = np.einsum("qd,qkd->qk", asked, found)
    if listed.std() == 0 or own.std() == 0:
        return 1.0  # nothing to compare by
    return float(np.corrcoef(listed.ravel(), own.ravel())[0, 1])


def _alike(one: str, ours: Table, other: str, theirs: Table) -> None:
    """Refuse tables of different widths."""
    for what, width, found in zip(("global", "local"), _widths(ours), _widths(theirs), strict=True):
        if width != found:
            raise ValueError(
                f"The {what} descriptors of the {one} have width {width} and those of the {other} {found}."
            )


def _widths(table: Table) -> tuple[int, int]:
    stored = table.table if isinstance(table, Rows) else table
    stored = stored.first if isinstance(stored, Joined) else stored
    assert isinstance(stored, Stored)
    return stored.global_matrix.shape[1], stored.local_table.width
