"""Benchmarks of instances as ELViS (Suma et al. 2026) lists them: INSTRE, Product1M, Met, RP2K, and a thousand of SOP.

A folder has `test_query.txt` and `test_gallery.txt`, a path a line, and the right images in `gnd_<name>.pkl` or as a
class after the path. The measure is mAP@100.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from locore.datasets._images import FileImages
from locore.datasets._metric_learning import missing
from locore.datasets.benchmark import NOBODY, Benchmark, Relevance, benchmarks
from locore.metrics.suites import MapAt
from locore.utils.unpickle import unpickle

SOURCE = "https://github.com/pavelsuma/ELViS"
QUERIES, GALLERY = "test_query.txt", "test_gallery.txt"
DEPTH = 100
Listed = tuple[list[str], np.ndarray | None]  # paths and classes


@benchmarks.register("instre")
def instre(root: str, images: str | None = None) -> Benchmark:
    """INSTRE (Wang and Jiang 2015): objects and buildings in other scenes.

    Args:
        root: the folder of the lists.
        images: the folder of the images; None = root.

    Raises:
        ValueError: a list is missing or damaged.
    """
    return _with_ground_truth("instre", root, images)


@benchmarks.register("product1m")
def product1m(root: str, images: str | None = None) -> Benchmark:
    """Product1M (Zhan et al. 2021): cosmetics; arguments and errors as `instre`."""
    return _with_ground_truth("product1m", root, images)


@benchmarks.register("met")
def met(root: str, images: str | None = None) -> Benchmark:
    """Met (Ypsilantis et al. 2021): exhibits of a museum; arguments and errors as `instre`."""
    return _with_classes("met", root, images)


@benchmarks.register("rp2k")
def rp2k(root: str, images: str | None = None) -> Benchmark:
    """RP2K (Peng et al. 2020): products on shelves; arguments and errors as `instre`."""
    return _with_classes("rp2k", root, images)


@benchmarks.register("sop1k")
def sop1k(root: str, images: str | None = None) -> Benchmark:
    """A thousand queries of Stanford Online Products among its test images; arguments and errors as `instre`."""
    return _with_classes("sop1k", root, images)


def _with_ground_truth(name: str, root: str, images: str | None) -> Benchmark:
    """Read a benchmark whose right images are in a pickle: "gnd", of each query "ok", "junk" and perhaps "bbx"."""
    folder, (asked, _), (listed, _) = _lists(name, root)
    path = folder / f"gnd_{name}.pkl"
    try:
        truth = unpickle(path)["gnd"]
        positive, junk = (
            [np.array(each.get(field, ()), dtype=np.int64).ravel() for each in truth] for field in ("ok", "junk")
        )
        boxes = np.array([each["bbx"] for each in truth], dtype=float) if all("bbx" in each for each in truth) else None
        if len(truth) != len(asked):
            raise ValueError(f"it has {len(truth)} queries, and {QUERIES} {len(asked)}")
        for rows in (*positive, *junk):
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(listed):
                raise ValueError(f"an answer is not an image of {GALLERY}")
        if boxes is not None and (boxes.shape != (len(asked), 4) or not np.isfinite(boxes).all()):
            raise ValueError("a box is not four numbers")
    except FileNotFoundError:
        raise missing(name, path, folder, SOURCE) from None
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"'{path}' is not the ground truth of {name} ({error}); get it from {SOURCE}.") from error
    nothing = [np.empty(0, dtype=np.int64)] * len(asked)
    queries = FileImages(_images(folder, images), asked, np.arange(len(asked)), boxes=boxes)
    gallery = FileImages(_images(folder, images), listed, np.full(len(listed), NOBODY))
    suite = MapAt(DEPTH, most_junk=max(map(len, junk)))
    return Benchmark(name, None, queries, gallery, {"all": Relevance(positive, junk, nothing)}, suite=suite)


def _with_classes(name: str, root: str, images: str | None) -> Benchmark:
    """Read a benchmark whose lists have a class after each path; queries that are in the gallery are left out of their
    own lists."""
    folder, (asked, of_queries), (listed, of_gallery) = _lists(name, root)
    if of_queries is None or of_gallery is None:
        raise ValueError(f"The lists of {name} in '{folder}' have no class after each path; get them from {SOURCE}.")
    places = {path: place for place, path in enumerate(listed)}
    own = np.array([places.get(path, NOBODY) for path in asked])
    if (own >= 0).any() and (own < 0).any():
        raise ValueError(f"Some queries of {name} are in the gallery and some are not; get the lists from {SOURCE}.")
    self_index = own if (own >= 0).all() else None
    return Benchmark(
        name,
        None,
        FileImages(_images(folder, images), asked, of_queries),
        FileImages(_images(folder, images), listed, of_gallery),
        {"all": Relevance.from_labels(of_queries, of_gallery, self_index)},
        self_index=self_index,
        suite=MapAt(DEPTH),
    )


def _images(folder: Path, images: str | None) -> Path:
    return Path(images).expanduser() if images else folder


def _lists(name: str, root: str) -> tuple[Path, Listed, Listed]:
    """Return the folder, and paths and classes (None = none are given) of the queries and of the gallery."""
    folder = Path(root).expanduser()
    queries, gallery = (_list(name, folder, file) for file in (QUERIES, GALLERY))
    return folder, queries, gallery


def _list(name: str, folder: Path, file: str) -> Listed:
    try:
        lines = [line.split(",") for line in (folder / file).read_text(encoding="utf-8-sig").splitlines() if line]
    except FileNotFoundError:
        raise missing(name, folder / file, folder, SOURCE) from None
    except UnicodeDecodeError:
        raise ValueError(f"'{folder / file}' is not a text; get it again from {SOURCE}.") from None
    if not lines:
        raise ValueError(f"'{folder / file}' has no images; get it again from {SOURCE}.")
    try:
        classes = np.array([int(line[1]) for line in lines]) if len(lines[0]) > 1 else None
    except (ValueError, IndexError):
        raise ValueError(f"'{folder / file}' has a line without a class; get it again from {SOURCE}.") from None
    return [line[0] for line in lines], classes
