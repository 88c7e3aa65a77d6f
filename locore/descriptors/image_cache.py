"""Descriptors of single images, cached on disk by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from locore.datasets._images import UNREADABLE, on_white
from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors
from locore.utils.files import atomic, cache_folder

Picture = str | Path | Image.Image


def describe_cached(pictures: Sequence[Picture], extractor: Extractor) -> Descriptors:
    """Describe images, extracting only those that are not in the cache.

    Raises:
        ValueError: an image cannot be read.
    """
    folder = cache_folder() / "images" / extractor.fingerprint
    paths = [folder / f"{_key(picture)}.npz" for picture in pictures]
    known = {path: _kept(path, extractor.locals_per_image) for path in paths}
    new = [(path, picture) for path, picture in dict(zip(paths, pictures, strict=True)).items() if known[path] is None]
    for start in range(0, len(new), extractor.batch_size):
        part = new[start : start + extractor.batch_size]
        found = extractor.describe([open_image(picture) for _, picture in part])
        for row, (path, _) in enumerate(part):
            known[path] = found[row]
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **found[row].arrays())  # type: ignore[arg-type]
    return Descriptors.stack([each for path in paths if (each := known[path]) is not None])


def _key(picture: Picture) -> str:
    """Hash the content of an image."""
    if isinstance(picture, Image.Image):
        pixels = on_white(picture)
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    try:
        return hashlib.sha256(Path(picture).read_bytes()).hexdigest()
    except (OSError, TypeError) as error:
        raise ValueError(f"Cannot read the image '{picture}' ({error}).") from error


def _kept(path: Path, count: int) -> Descriptors | None:
    """Read the cached descriptors of an image; None if there are none, or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Descriptors.from_arrays(file)
    except Exception:  # a damaged zip fails in many ways
        return None
    return found if found.local.shape[:1] == (count,) else None


def open_image(picture: Picture) -> Image.Image:
    """Open an image as RGB, upright.

    Raises:
        ValueError: the image cannot be read.
    """
    if isinstance(picture, Image.Image):
        return on_white(picture)
    try:
        with Image.open(picture) as image:
            return on_white(image)
    except UNREADABLE as error:
        raise ValueError(f"Cannot read the image '{picture}' ({error}).") from error
