"""Revisited Oxford and Paris (Radenović et al. 2018), with a million distractors or without."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from locore.datasets._images import FileImages
from locore.datasets._metric_learning import missing
from locore.datasets.benchmark import NOBODY, Benchmark, ImageSet, Joined, Relevance, benchmarks
from locore.metrics.suites import Revisited
from locore.utils.unpickle import unpickle

log = logging.getLogger(__name__)

SOURCE = "http://cmp.felk.cvut.cz/revisitop"
IMAGES = {"roxford5k": 4_993, "rparis6k": 6_322}
DISTRACTORS = 1_001_001
GRADES = ("easy", "hard", "junk")
# Protocol -> which grades are right, which do not count, and which are moved behind the list before it is cut. Images
# that do not count but stay take part in re-ranking: a list-wise re-ranker may use them.
PROTOCOLS = {
    "medium": (("easy", "hard"), ("junk",), ("junk",)),
    "hard": (("hard",), ("junk", "easy"), ("junk",)),
    "hard*": (("hard",), ("junk", "easy"), ("junk", "easy")),
    "easy": (("easy",), ("junk", "hard"), ("junk",)),
}


@benchmarks.register("roxford5k")
def roxford5k(root: str, distractors: str | None = None) -> Benchmark:
    """70 queries, each cropped to its building, among 4,993 images of Oxford.

    Args:
        root: the folder with `gnd_roxford5k.pkl` and, if descriptors are to be extracted, `jpg`.
        distractors: the folder of revisitop1m, with `revisitop1m.txt`, whose images follow the gallery's; None =
            without.

    Raises:
        ValueError: the ground truth is missing or damaged.
    """
    return revisited("roxford5k", Path(root).expanduser(), distractors)


@benchmarks.register("rparis6k")
def rparis6k(root: str, distractors: str | None = None) -> Benchmark:
    """70 queries, each cropped to its building, among 6,322 images of Paris; arguments and errors as `roxford5k`."""
    return revisited("rparis6k", Path(root).expanduser(), distractors)


def revisited(name: str, root: Path, distractors: str | None) -> Benchmark:
    """Read either of the two."""
    path = root / f"gnd_{name}.pkl"
    try:
        truth = unpickle(path)
    except FileNotFoundError:
        raise missing(name, path, root, SOURCE) from None
    try:
        listed, asked = (list(map(str, truth[field])) for field in ("imlist", "qimlist"))
        answers = list(truth["gnd"])
        if not asked or len(asked) != len(answers):
            raise ValueError(f"it has {len(asked)} queries and answers of {len(answers)}")
        boxes = None
        if _boxed(answers):
            boxes = np.array([each["bbx"] for each in answers], dtype=float).reshape(len(asked), 4)
        graded = {grade: [_rows(each, grade) for each in answers] for grade in GRADES}
        for rows in graded.values():
            if any(len(row) and not 0 <= row.min() <= row.max() < len(listed) for row in rows):
                raise ValueError("an answer is not an image of the list")
        for each in map(np.concatenate, zip(*graded.values(), strict=True)):
            if len(np.unique(each)) < len(each):
                raise ValueError("an image is in two grades of a query, or twice in one")
        if boxes is not None and (not np.isfinite(boxes).all() or (boxes[:, :2] >= boxes[:, 2:]).any()):
            raise ValueError("a box is not finite or empty")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"'{path}' is not the ground truth of {name} ({why}); get it from {SOURCE}.") from error
    if len(listed) != IMAGES[name]:
        log.warning("'%s' names %d images where %d were published.", path, len(listed), IMAGES[name])
    if boxes is None:
        log.warning("'%s' has no boxes ('bbx'), so the queries are whole images.", path)
    landmarks = [re.sub(r"_\d+$", "", image) for image in asked]
    gallery: ImageSet = FileImages(root / "jpg", _files(listed), np.full(len(listed), NOBODY))
    if distractors:
        gallery = Joined(gallery, _distractors(Path(distractors).expanduser()))
    return Benchmark(
        name=f"{name}+1m" if distractors else name,
        train=None,
        queries=FileImages(root / "jpg", _files(asked), np.unique(landmarks, return_inverse=True)[1], boxes=boxes),
        gallery=gallery,
        protocols={
            protocol: Relevance(*(_together(graded, grades) for grades in each)) for protocol, each in PROTOCOLS.items()
        },
        suite=Revisited(),
    )


def _boxed(answers: list[dict]) -> bool:
    """Return whether the queries have boxes.

    Raises:
        ValueError: only some have.
    """
    boxed = [each.get("bbx") is not None for each in answers]
    if any(boxed) and not all(boxed):
        raise ValueError(f"query {boxed.index(False)} has no box ('bbx'), and others have")
    return any(boxed)


def _rows(answer: dict, grade: str) -> np.ndarray:
    """Return the images of a grade.

    In the older ground truth of Oxford5k and Paris6k "ok" is whatever is right; it is "easy" here, and nothing is hard.
    """
    older = "ok" in answer and "easy" not in answer and "hard" not in answer
    found = np.asarray({"easy": answer["ok"], "hard": [], "junk": answer["junk"]}[grade] if older else answer[grade])
    if found.size and (found.dtype.kind not in "iuf" or (found != found.astype(np.int64)).any()):
        raise ValueError(f"'{grade}' has something else than whole numbers")
    return found.astype(np.int64).ravel()


def _distractors(root: Path) -> FileImages:
    """Return the million images without a landmark of Oxford or Paris."""
    path = root / "revisitop1m.txt"
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except OSError:
        raise ValueError(f"The distractors are incomplete: '{path}' is missing. Get it from {SOURCE}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not a text; get it again from {SOURCE}.") from None
    if len(names) != DISTRACTORS:
        log.warning("'%s' names %d images where %d were published.", path, len(names), DISTRACTORS)
    return FileImages(root / "jpg", names, np.full(len(names), NOBODY))


def _files(images: list[str]) -> list[str]:
    return [f"{image}.jpg" for image in images]


def _together(graded: dict[str, list[np.ndarray]], grades: tuple[str, ...]) -> list[np.ndarray]:
    return [np.concatenate(rows) for rows in zip(*(graded[g] for g in grades), strict=True)]
