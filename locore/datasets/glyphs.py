"""Characters in fonts: a class is a character, an image its rendering in one of the fonts that matplotlib ships.

A small instance-level retrieval benchmark that needs no download: renderings of one character share a shape and differ
in weight, slant, serifs and style, and many characters look alike.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont, features

from locore.datasets.benchmark import Benchmark, ImageSet, benchmarks
from locore.utils.files import atomic, cache_folder
from locore.utils.progress import track

log = logging.getLogger(__name__)

PIXELS = 64  # side of a rendering
POINTS = 44  # font size in pixels: ascenders and accents of most fonts fit
MIN_FONTS = 9


class Glyphs(ImageSet):
    """Rendered characters in memory."""

    def __init__(self, pixels: np.ndarray, names: list[str], labels: np.ndarray):
        self.pixels, self.names, self.labels = pixels, names, labels
        self.fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")


@benchmarks.register("glyphs")
def glyphs(max_classes: int | None = None, max_queries: int | None = None) -> Benchmark:
    """Leave-one-out retrieval of characters; a random half of the classes (seed 0) trains, the other half tests.

    Args:
        max_classes: use a random draw of so many classes; None = all.
        max_queries: use a fixed random draw of so many queries; None = all.
    """
    pixels, names, labels = _cached()
    classes = np.random.default_rng(0).permutation(np.unique(labels))[:max_classes]
    if len(classes) < 4:
        raise ValueError(
            f"glyphs.max_classes = {max_classes} leaves too few classes for training and test; give 4 or more."
        )
    train, test = (
        Glyphs(pixels[rows], [names[i] for i in rows], labels[rows])
        for half in np.array_split(classes, 2)
        for rows in [np.flatnonzero(np.isin(labels, half))]
    )
    return Benchmark.leave_one_out("glyphs", train, test, max_queries)


def _cached() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return the renderings, drawn once for each version of the fonts and of the renderer."""
    versions = f"{matplotlib.__version__}-{features.version('freetype2')}-{PIXELS}-{POINTS}-{MIN_FONTS}"
    path = cache_folder() / f"glyphs-{versions}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["pixels"], file["names"].tolist(), file["labels"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("The cache %s is damaged (%s) and will be made again.", path, error)
    pixels, names, labels = _render()
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, pixels=pixels, names=np.array(names), labels=labels)
    return pixels, names, labels


def _fonts() -> list[Path]:
    """List matplotlib's fonts, without LastResort and the cm* fonts, whose character maps differ from Unicode."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(p for p in folder.glob("*.ttf") if not p.name.startswith(("LastResort", "cm")))


def _render() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Render all characters: pixels (N, PIXELS, PIXELS) uint8, names, labels (N,)."""
    drawn: dict[int, dict[str, bytes]] = {}  # character -> font -> rendering
    for path in track(_fonts(), "drawing glyphs"):
        font = ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC)
        for character in TTFont(path, lazy=True).getBestCmap():
            if unicodedata.category(chr(character))[0] in "CZ":  # control, private, unassigned; separators are blank
                continue
            image = Image.new("L", (PIXELS, PIXELS), 255)
            ImageDraw.Draw(image).text((PIXELS / 2, PIXELS / 2), chr(character), fill=0, font=font, anchor="mm")
            rendering = image.tobytes()
            if rendering.count(255) < len(rendering):
                drawn.setdefault(character, {})[path.stem] = rendering
    drawn = {c: fonts for c, fonts in sorted(drawn.items()) if len(fonts) >= MIN_FONTS}

    # Characters with the same rendering in any font are one class, named by the first.
    owner: dict[int, int] = {c: c for c in drawn}

    def root(c: int) -> int:
        while owner[c] != c:
            c = owner[c]
        return c

    first: dict[bytes, int] = {}
    for character, fonts in drawn.items():
        for rendering in fonts.values():
            a, b = root(character), root(first.setdefault(rendering, character))
            owner[max(a, b)] = min(a, b)

    pixels, names, labels, seen = [], [], [], set()
    for character, fonts in drawn.items():
        for font_name, rendering in fonts.items():
            if rendering not in seen:
                seen.add(rendering)
                pixels.append(np.frombuffer(rendering, np.uint8).reshape(PIXELS, PIXELS))
                names.append(f"U+{character:04X} {font_name}")
                labels.append(root(character))
    order = np.argsort(labels, kind="stable")
    return np.stack(pixels)[order], [names[i] for i in order], np.array(labels)[order]
