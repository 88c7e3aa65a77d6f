"""Descriptors of single images, cached on disk by their content."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from locore.datasets._images import UNREADABLE, on_white
from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors
from locore.utils.files import atomic, cache_folder

log = logging.getLogger(__name__)
Picture = str | Path | bytes | np.ndarray | IO[bytes] | Image.Image
KINDS = "a file's path, its bytes, an open file, a PIL image, or an array (height, width, 3) of uint8"
SHOWN = 60  # characters of what is not an image, in messages


def describe_cached(pictures: Mapping[str, Picture], extractor: Extractor) -> Descriptors:
    """Describe images, extracting only those that are not in the cache.

    Args:
        pictures: by names for messages, such as "hits[3]".
        extractor: of the descriptors.

    Raises:
        ValueError: an image cannot be read.
    """
    folder = cache_folder() / "images" / extractor.fingerprint
    opened = {name: _readable(picture, name) for name, picture in pictures.items()}
    paths = {name: folder / f"{_key(picture, name)}.npz" for name, picture in opened.items()}
    known = {path: _kept(path, extractor.locals_per_image) for path in paths.values()}
    new = list({path: name for name, path in paths.items() if known[path] is None}.items())
    for start in range(0, len(new), extractor.batch_size):
        part = new[start : start + extractor.batch_size]
        found = extractor.describe([open_image(opened[name], name) for _, name in part])
        for row, (path, _) in enumerate(part):
            known[path] = found[row]
            _keep(path, found[row])
    return Descriptors.stack([each for path in paths.values() if (each := known[path]) is not None])


def _readable(picture: Picture, name: str) -> str | Path | bytes | Image.Image:
    """Return an image as a path, bytes or a PIL image; an open file is read from its start."""
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise ValueError(f"{name} is an address, '{_short(picture)}'; nothing is fetched, so give {KINDS}.")
    if isinstance(picture, str | Path | bytes | Image.Image):
        return picture
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(f"{name} is an array of {picture.dtype} of shape {picture.shape}; give {KINDS}.")
        return Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
    if callable(getattr(picture, "read", None)):
        if callable(getattr(picture, "seek", None)):
            picture.seek(0)
        if isinstance(content := picture.read(), bytes):
            return content
    raise ValueError(f"{name} is {_short(repr(picture))}, of type {type(picture).__name__}; give {KINDS}.")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _key(picture: str | Path | bytes | Image.Image, name: str) -> str:
    """Hash the content of an image."""
    if isinstance(picture, Image.Image):
        pixels = open_image(picture, name)
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    try:
        content = picture if isinstance(picture, bytes) else Path(picture).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {name}, '{_short(str(picture))}' ({_short(str(error))}).") from error
    return hashlib.sha256(content).hexdigest()


def _kept(path: Path, count: int) -> Descriptors | None:
    """Read the cached descriptors of an image; None if there are none, or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Descriptors.from_arrays(file)
    except Exception:  # a damaged zip fails in many ways
        return None
    return found if found.local.shape[:1] == (count,) else None


def _keep(path: Path, found: Descriptors) -> None:
    """Cache the descriptors of an image; where that is not possible, say it once."""
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **found.arrays())  # type: ignore[arg-type]
    except OSError as error:
        _warn_once(
            f"Descriptors are not kept, since '{cache_folder()}' cannot be written ({error.strerror or error}). Set "
            "LOCORE_CACHE to a folder."
        )


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def open_image(picture: str | Path | bytes | Image.Image, name: str = "the image") -> Image.Image:
    """Open an image as RGB, upright.

    Args:
        picture: the image, its file, or the content of its file.
        name: for messages.

    Raises:
        ValueError: the image cannot be read, or has no pixels.
    """
    try:
        if isinstance(picture, Image.Image):
            found = on_white(picture)
        else:
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture).expanduser()) as image:
                found = on_white(image)
    except UNREADABLE as error:
        of = f", '{_short(str(picture))}'" if isinstance(picture, str | Path) else ""
        raise ValueError(f"Cannot read {name}{of} ({_short(str(error))}).") from error
    if not found.width or not found.height:
        raise ValueError(f"{name} has no pixels.")
    return found
