"""Image files of a folder or a zip, opened when they are needed."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from locore.datasets.benchmark import ImageSet

log = logging.getLogger(__name__)

# What Pillow and zipfile raise of damaged, hostile or encrypted images.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
# Photographs that Pillow reads with a plug-in, if at all.
UNREAD_SUFFIXES = {".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
UNREAD = "Pillow does not read this kind as it is installed; save them as JPEG"
WHOLE_SIZE = "whole size"  # in an image's `info`: width and height of the file that it was cut out of


class FileImages(ImageSet):
    """Image files below a folder or inside a zip.

    Args:
        root: the folder or zip.
        names: paths below it.
        labels: (N,) int64.
        versions: of each file, changes with its content: size and time, or size and checksum; None = looked up when
            descriptors are needed, so that the files may be missing until then.
        boxes: (N, 4) left, top, right and bottom, in pixels as they are stored, of the part that is cut out of each
            image; None = no cut.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: np.ndarray,
        versions: Sequence[tuple[int, int]] | None = None,
        boxes: np.ndarray | None = None,
    ):
        self.root, self.names, self.labels, self.boxes = root, list(names), np.asarray(labels, dtype=np.int64), boxes
        self._versions = versions
        self._zip: zipfile.ZipFile | None = None

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.fingerprint_of(np.arange(len(self.names)))

    def fingerprint_of(self, rows: np.ndarray) -> str:
        known = repr([self._files[row] for row in rows])
        known += "upright"  # since version 0.3; what was described before is described anew
        known += "" if self.boxes is None else repr(self.boxes[rows].tolist())
        return hashlib.sha256(known.encode()).hexdigest()

    @cached_property
    def _files(self) -> list[tuple[str, tuple[int, int]]]:
        """Name and version of each file."""
        return list(zip(self.names, self._looked_up() if self._versions is None else self._versions, strict=True))

    def _looked_up(self) -> list[tuple[int, int]]:
        try:
            return versions(self.root / name for name in self.names)
        except OSError as error:
            raise ValueError(
                f"The image '{error.filename}' is missing; unpack the images there, or give files of descriptors."
            ) from error

    def cut(self, boxes: np.ndarray) -> FileImages:
        """Return the same images, each cut to its box (N, 4)."""
        return FileImages(self.root, self.names, self.labels, self._versions, boxes)

    def image(self, index: int) -> Image.Image:
        name = self.names[index]
        try:
            with Image.open(self._open(name)) as image:
                found = on_white(image if self.boxes is None else _cut(image, self.boxes[index]))
                found.info[WHOLE_SIZE] = image.size
                return found
        except UNREADABLE as error:
            raise ValueError(
                f"Cannot read the image '{name}' in {self.root} ({error}); repair or remove it and run again."
            ) from error

    def _open(self, name: str):
        if self.root.is_dir():
            return self.root / name
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.root)
        return io.BytesIO(self._zip.read(name))


def _cut(image: Image.Image, box: np.ndarray) -> Image.Image:
    left, top, right, bottom = box
    if right <= 0 or bottom <= 0 or left >= image.width or top >= image.height:
        raise ValueError(f"its box {box.tolist()} is outside its {image.width} × {image.height} pixels")
    return image.crop((left, top, right, bottom))


def versions(paths: Iterable[str | Path]) -> list[tuple[int, int]]:
    """Return size and time of change of every file.

    Raises:
        OSError: a file is missing.
    """
    return [(stat.st_size, stat.st_mtime_ns) for stat in (Path(path).stat() for path in paths)]


def on_white(image: Image.Image) -> Image.Image:
    """Convert an image to RGB with 8 bits, upright as its EXIF data says, transparency shown on white.

    Raises:
        ValueError: its pixels are floating-point numbers.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey // (257 if grey.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def image_files(root: Path) -> list[tuple[str, tuple[int, int]]]:
    """List name and (size, checksum or time of change) of every image in the sub-folders of a folder or zip, sorted.

    Photographs of kinds that cannot be read are left out; a warning counts them.

    Raises:
        ValueError: it is neither a folder nor a zip.
    """
    if root.is_dir():
        files = {path.relative_to(root).as_posix(): path for path in files_below(root)}
        stats = [(name, files[name].stat()) for name in files if _is_image(name)]
        listed, found = list(files), [(name, (stat.st_size, stat.st_mtime_ns)) for name, stat in stats]
    else:
        try:
            with zipfile.ZipFile(root) as archive:
                listed = archive.namelist()
                found = [(i.filename, (i.file_size, i.CRC)) for i in archive.infolist() if _is_image(i.filename)]
        except zipfile.BadZipFile as error:
            raise ValueError(f"'{root}' is neither a folder nor a readable zip ({error}).") from error
    if unread := [name for name in listed if is_unread(name)]:
        log.warning("%d photographs in %s are left out, such as '%s': %s.", len(unread), root, unread[0], UNREAD)
    return sorted(found)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file in a folder and in all folders below it, links to folders included, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (own := os.path.realpath(place)) in seen:
            folders.clear()  # a link into a circle, or a second one to the same folder
            continue
        seen.add(own)
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place, name)).is_file())


def is_unread(name: str) -> bool:
    """Return whether a file is a photograph of a kind that Pillow cannot read as it is installed."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in UNREAD_SUFFIXES and suffix not in Image.registered_extensions() and not _is_hidden(name)


def is_readable(name: str) -> bool:
    """Return whether a file is of a kind that Pillow reads, by its name."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES or (suffix in UNREAD_SUFFIXES and suffix in Image.registered_extensions())


def _is_image(name: str) -> bool:
    """Return whether a file is an image of a class: in a sub-folder, not hidden, not one that macOS adds to a zip."""
    return is_readable(name) and len(PurePosixPath(name).parts) > 1 and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
