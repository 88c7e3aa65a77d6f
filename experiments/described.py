"""Descriptors that someone has extracted already, in the files of AMES and LOCORE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gin

from locore.datasets import Benchmark
from locore.descriptors.ames import Locals, Stored, read_globals


@gin.configurable
@dataclass(frozen=True)
class Files:
    """Where the descriptors of queries and gallery are; they are read as they are needed.

    Attributes:
        query_global, gallery_global: raw float32. query_local, gallery_local: HDF5.
        count: L, how many of an image's local descriptors are used.
    """

    query_global: str
    query_local: str
    gallery_global: str
    gallery_local: str
    count: int

    def tables(self, benchmark: Benchmark) -> tuple[Stored, Stored]:
        """Of the queries and of the gallery.

        Raises:
            ValueError: a file is missing, or another one's.
        """
        found = []
        for images, globals_, locals_ in (
            (benchmark.queries, self.query_global, self.query_local),
            (benchmark.gallery, self.gallery_global, self.gallery_local),
        ):
            rows = read_globals(Path(globals_).expanduser(), len(images))
            found.append(Stored(rows, Locals(Path(locals_).expanduser(), len(images), self.count)))
        queries, gallery = found
        for what, one, other in (
            ("global", queries.globals_.shape[1], gallery.globals_.shape[1]),
            ("local", queries.locals_.width, gallery.locals_.width),
        ):
            if one != other:
                raise ValueError(f"The queries' {what} descriptors are {one} wide and the gallery's {other}.")
        return queries, gallery

    @cached_property
    def said(self) -> str:
        """The files as lines of a configuration: another size or time is another file."""
        named = (self.query_global, self.query_local, self.gallery_global, self.gallery_local)
        paths = [Path(name).expanduser() for name in named]
        stats = [(path, path.stat()) for path in paths if path.is_file()]
        return "".join(f"# {path}: {stat.st_size} bytes, changed {stat.st_mtime_ns}\n" for path, stat in stats)
