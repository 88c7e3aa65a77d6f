"""Image files of a folder or a zip, opened when they are needed."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from locore.datasets.benchmark import ImageSet

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

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
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

    Raises:
        ValueError: it is neither a folder nor a zip.
    """
    if root.is_dir():
        files = [(p.relative_to(root).as_posix(), p) for p in root.rglob("*")]
        kept = [(name, p.stat()) for name, p in files if _is_image(name) and p.is_file()]
        return sorted((name, (stat.st_size, stat.st_mtime_ns)) for name, stat in kept)
    try:
        with zipfile.ZipFile(root) as archive:
            return sorted(
                (info.filename, (info.file_size, info.CRC)) for info in archive.infolist() if _is_image(info.filename)
            )
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{root}' is neither a folder nor a readable zip ({error}).") from error


def _is_image(name: str) -> bool:
    """Return whether a file is an image of a class: in a sub-folder, not hidden, not one that macOS adds to a zip."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and len(path.parts) > 1 and not hidden
