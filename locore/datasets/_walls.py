"""Procedurally drawn walls for `posters`: wide, full of letters, shapes and patterns, in a few shared styles."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1536, 384  # pixels
PALETTES = (
    ("#f4f1de", "#e07a5f", "#3d405b", "#81b29a", "#f2cc8f", "#5f0f40"),
    ("#edf2f4", "#8d99ae", "#2b2d42", "#ef233c", "#d90429", "#ffd166"),
    ("#fefae0", "#606c38", "#283618", "#dda15e", "#bc6c25", "#a3b18a"),
    ("#e0fbfc", "#98c1d9", "#3d5a80", "#ee6c4d", "#293241", "#9d4edd"),
    ("#ffffff", "#e5e5e5", "#9a9a9a", "#5c5c5c", "#2a2a2a", "#000000"),
    ("#fff0f3", "#ffb3c1", "#ff4d6d", "#c9184a", "#590d22", "#ffccd5"),
    ("#e3f2fd", "#90caf9", "#2196f3", "#1565c0", "#0d47a1", "#00bcd4"),
    ("#fffde7", "#fff176", "#fbc02d", "#f57f17", "#8d6e63", "#3e2723"),
)
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghkmnqrty0123456789ΓΔΘΛΞΠΣΦΨΩβδλμπφψЖИЮЯ&@#%?!"


@lru_cache(maxsize=48)
def wall(seed: int, number: int) -> Image.Image:
    """Draw one wall, RGB; the same numbers give the same wall."""
    random, palette = _begun(seed, number)
    colours = PALETTES[palette]
    image = Image.new("RGB", (WIDTH, HEIGHT), colours[random.integers(len(colours))])
    draw = ImageDraw.Draw(image)
    for box in _panels((0, 0, WIDTH, HEIGHT), random):
        _fill(draw, box, colours, random)
    return image


def style(seed: int, number: int) -> int:
    """Return the number of the palette that a wall is painted in."""
    return _begun(seed, number)[1]


def _begun(seed: int, number: int) -> tuple[np.random.Generator, int]:
    """Return the generator of a wall and its palette, which is drawn first."""
    random = np.random.default_rng((seed, number))
    return random, int(random.integers(len(PALETTES)))


def _panels(box: tuple[int, int, int, int], random: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Cut a box into smaller ones at random places until none is large."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if max(width, height) < random.uniform(90, 200):
        return [box]
    share = random.uniform(0.35, 0.65)
    if width > height:
        cut = left + int(share * width)
        parts = ((left, top, cut, bottom), (cut, top, right, bottom))
    else:
        cut = top + int(share * height)
        parts = ((left, top, right, cut), (left, cut, right, bottom))
    return [panel for part in parts for panel in _panels(part, random)]


def _fill(draw: ImageDraw.ImageDraw, box, colours: tuple[str, ...], random: np.random.Generator) -> None:
    """Draw ground, pattern, shapes and letters of a panel."""
    left, top, right, bottom = box
    ground, ink, other = (colours[i] for i in random.permutation(len(colours))[:3])
    draw.rectangle(box, fill=ground)
    kind = random.integers(4)
    step = int(random.integers(8, 22))
    if kind == 0:  # stripes
        for x in range(left, right, step):
            draw.line((x, top, min(x + int(random.integers(-20, 20)), right), bottom), fill=other, width=3)
    elif kind == 1:  # dots
        for x in range(left + 4, right - 4, step):
            for y in range(top + 4, bottom - 4, step):
                draw.ellipse((x, y, x + 4, y + 4), fill=other)
    for _ in range(int(random.integers(2, 5))):
        _shape(draw, box, (ink, other)[random.integers(2)], random)
    size = int(random.integers(18, max(20, min(right - left, bottom - top))))
    font = _font(int(random.integers(len(_fonts()))), size)
    line = top
    while line + size <= bottom:
        text = "".join(random.choice(list(LETTERS), 12))
        for place, letter in enumerate(text):
            x = left + 4 + int(place * 0.75 * size)
            if x + 0.7 * size > right:
                break
            draw.text((x, line), letter, font=font, fill=ink)
        line += int(1.15 * size)


def _shape(draw: ImageDraw.ImageDraw, box, colour: str, random: np.random.Generator) -> None:
    left, top, right, bottom = box
    size = int(random.integers(10, max(12, min(right - left, bottom - top) // 2)))
    x, y = (int(random.integers(low, max(low + 1, high - size))) for low, high in ((left, right), (top, bottom)))
    match random.integers(4):
        case 0:
            draw.ellipse((x, y, x + size, y + size), outline=colour, width=4)
        case 1:
            draw.ellipse((x, y, x + size, y + size), fill=colour)
        case 2:
            draw.rectangle((x, y, x + size, y + int(size * random.uniform(0.3, 1))), outline=colour, width=4)
        case _:
            draw.regular_polygon((x + size / 2, y + size / 2, size / 2), int(random.integers(3, 7)), fill=colour)


@lru_cache(maxsize=1)
def _fonts() -> list[Path]:
    """List the fonts of matplotlib that have all letters."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(p for p in folder.glob("DejaVu*.ttf") if "Display" not in p.name)


@cache
def _font(number: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_fonts()[number], size)
