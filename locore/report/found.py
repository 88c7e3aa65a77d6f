"""One HTML page of what a search found."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from locore.descriptors.kept import opened
from locore.report.page import rendered, webp

SIDE = 256  # of a picture, pixels


def page(query: Image.Image, folder: Path, found: list[tuple[str, int, float | None]]) -> str:
    """The page.

    Args:
        found: path below the folder, place before re-ranking and score of each, best first.
    """
    hits = [(name, before, score, webp(opened(folder / name), SIDE)) for name, before, score in found]
    return rendered("found.html.j2", query=webp(query, SIDE), hits=hits)
