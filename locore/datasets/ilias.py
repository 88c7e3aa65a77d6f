"""ILIAS (Kordopatis-Zilos et al., CVPR 2025): objects in large scale, by mAP@1000."""

from __future__ import annotations

import gzip
import math
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np

from locore.datasets._images import FileImages
from locore.datasets._metric_learning import missing
from locore.datasets.benchmark import NOBODY, Benchmark, ImageSet, Joined, Relevance, benchmarks
from locore.metrics.suites import MapAt

SOURCE = "https://vrg.fel.cvut.cz/ilias"
DEPTH = 1000
# Shares of the image that an object takes, and numbers of other things in it, between which positives are grouped.
SCALES = (0, 0.06880213760855043, 0.13526567164179104, 0.2729876723163842, math.inf)
CLUTTER = (0, 18, 33, 53, math.inf)


@benchmarks.register("ilias")
def ilias(root: str, images: str | None = None, distractors: str | None = None, crop: bool = True) -> Benchmark:
    """Image queries among the positives of all objects, with distractors or without.

    Protocols: all positives, and by scale and by clutter those of one group, the query's others left out.

    Args:
        root: the folder with `image_ids`.
        images: the folder of the objects' images, with a `_bbox.txt` beside each; None = `ilias_core` in root.
        distractors: the folder of the distractors' images, named by their ids; None = without distractors.
        crop: cut the queries to their boxes, as published; False = for files of descriptors, where images are missing.

    Raises:
        ValueError: a list is missing or damaged.
    """
    folder = Path(root).expanduser()
    core = Path(images).expanduser() if images else folder / "ilias_core"
    asked = sorted(line[0] for line in _table(folder, "image_query_ids.txt", 1))
    rows = sorted(_table(folder, "positive_ids.txt", 3))
    listed = [name for name, *_ in rows]
    try:
        scales, clutter = np.array([[float(scale), float(count)] for _, scale, count, *_ in rows]).T
    except ValueError as error:
        raise ValueError(
            f"positive_ids.txt of ILIAS in '{folder}' is damaged ({error}); get it again from {SOURCE}."
        ) from error
    objects, labels = np.unique([_object(name) for name in listed], return_inverse=True)
    number = {name: place for place, name in enumerate(objects)}
    unknown = [name for name in asked if _object(name) not in number]
    if unknown:
        raise ValueError(f"The query '{unknown[0]}' of ILIAS has no positives; get the lists again from {SOURCE}.")
    of_queries = np.array([number[_object(name)] for name in asked])
    of_query = [np.flatnonzero(labels == label) for label in of_queries]
    protocols = {"all": Relevance.without_junk(of_query)}
    for what, values, bounds in (("scale", scales, SCALES), ("clutter", clutter, CLUTTER)):
        for low, high in pairwise(bounds):
            inside = (values >= low) & (values < high)
            protocols[f"{what} {low:.2g}-{high:.2g}"] = Relevance(
                [own[inside[own]] for own in of_query],
                [own[~inside[own]] for own in of_query],
                [np.empty(0, dtype=np.int64)] * len(asked),
            )
    gallery: ImageSet = FileImages(core, [_file(name) for name in listed], labels)
    if distractors:
        names = [_file(line[0]) for line in _table(folder, "distractor_ids.txt.gz", 1)]
        gallery = Joined(gallery, FileImages(Path(distractors).expanduser(), names, np.full(len(names), NOBODY)))
    queries = FileImages(core, [_file(name) for name in asked], of_queries)
    if crop:
        queries = queries.cut(np.array([_box(core, name) for name in asked]))
    return Benchmark("ilias", None, queries, gallery, protocols, suite=MapAt(DEPTH, most_junk=max(map(len, of_query))))


def _object(name: str) -> str:
    return name.split("/")[0]


def _file(name: str) -> str:
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"


def _table(folder: Path, file: str, columns: int) -> list[list[str]]:
    """Read the lines of a list of `image_ids` as columns."""
    path = folder / "image_ids" / file
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise missing("ilias", path, folder, SOURCE) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is damaged ({error}); get it again from {SOURCE}.") from error
    rows = [line.split(",") for line in text.split()]
    if not rows or any(len(row) < columns for row in rows):
        raise ValueError(f"'{path}' has a line with fewer than {columns} columns, or none; get it again from {SOURCE}.")
    return rows


def _box(core: Path, name: str) -> tuple[float, float, float, float]:
    """Return the smallest box around all boxes of an image, from lines of left, top, width and height."""
    path = (core / _file(name)).with_suffix("")
    path = path.with_name(f"{path.name}_bbox.txt")
    try:
        boxes = np.loadtxt(path, dtype=float, ndmin=2)
        if boxes.shape[1:] != (4,) or not len(boxes):
            raise ValueError("its lines are not four numbers")
    except FileNotFoundError:
        raise missing("ilias", path, core, SOURCE, ", or set ilias.crop = False for files of descriptors") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error}); get it again from {SOURCE}.") from error
    left, top = boxes[:, :2].min(axis=0).clip(0)
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).clip(0)
    return left, top, right, bottom
