"""Parts that the metric-learning data sets share: lists become image sets, and counts are checked."""

from __future__ import annotations

import logging
import tarfile
import urllib.error
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locore.datasets._images import FileImages, versions
from locore.datasets.benchmark import ImageSet

log = logging.getLogger(__name__)


def packaged(name: str, dataset: Any, root: Path, download: bool, source: str) -> tuple[FileImages, FileImages]:
    """Return the training and the test images of one of pytorch-metric-learning's data sets.

    Args:
        name: registered name of the benchmark.
        dataset: class of the package.
        root: folder where it is unpacked.
        download: fetch it there if the folder is missing or empty.
        source: address where people get it.

    Raises:
        ValueError: a list or an image is missing, or a list is damaged.
    """
    otherwise = "; a folder half fetched has to be emptied first" if download else f", or set {name}.download = True"
    try:
        train, test = (dataset(root=str(root), split=split, download=download) for split in ("train", "test"))
    except FileNotFoundError as error:
        raise missing(name, Path(error.filename), root, source, otherwise) from error
    except (zipfile.BadZipFile, tarfile.TarError, urllib.error.URLError) as error:
        raise ValueError(
            f"{name} could not be fetched into '{root}' ({error}); empty the folder and try again."
        ) from error
    except (ValueError, IndexError) as error:
        if not root.is_dir():
            raise missing(name, root, root, source, otherwise) from error
        raise ValueError(
            f"A list of {name} in '{root}' is damaged ({error}); unpack it again from {source}."
        ) from error
    return listed(name, root, train.paths, train.labels, source), listed(name, root, test.paths, test.labels, source)


def listed(
    name: str,
    root: Path,
    paths: Sequence[str | Path],
    labels: Sequence[int] | np.ndarray,
    source: str,
) -> FileImages:
    """Return the image files of a list, all of which must exist.

    Args:
        name: registered name of the benchmark.
        root: folder of the data set.
        paths: of the files.
        labels: classes of the files.
        source: address where people get the data set.

    Raises:
        ValueError: a file is missing; the message names it.
    """
    try:
        found = versions(paths)
    except OSError as error:
        raise missing(name, Path(error.filename), root, source) from error
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return FileImages(root, names, np.array(labels), found)


def missing(name: str, path: Path, root: Path, source: str, otherwise: str = "") -> ValueError:
    """Return the error for a missing file."""
    return ValueError(f"{name} is incomplete in '{root}': '{path}' is missing. Get it from {source}{otherwise}.")


def check_counts(name: str, part: str, images: ImageSet, expected: int, classes: int) -> None:
    """Warn if the numbers of images and classes differ from the published ones."""
    found = len(images), len(np.unique(images.labels))
    if found != (expected, classes):
        log.warning(
            "%s: %s has %d images of %d classes where %d of %d were published; results will not compare.",
            *(name, part, *found, expected, classes),
        )
