"""One HTML page of what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from locore.descriptors.image_cache import open_image
from locore.probes.attribution import Explained
from locore.report.run_page import embedded, rendered, webp

SIDE = 256  # of a picture, pixels


@dataclass(frozen=True)
class Found:
    """A photo on the list.

    Attributes:
        name: its path below the folder.
        before: its place before re-ranking, from 1.
        similarity: of global descriptors.
        score: the re-ranker's; None where it gives an order alone.
    """

    name: str
    before: int
    similarity: float
    score: float | None


def page(
    query: Path, picture: Image.Image, folder: Path, about: str, found: list[Found], explained: Sequence[Explained]
) -> str:
    """The page.

    Args:
        query: its file.
        picture: what was asked of it.
        about: a sentence on what was searched, and how.
        found: best first.
        explained: what moved the scores of the first of them, see `explain`.
    """
    moved = [*explained, *[None] * (len(found) - len(explained))]
    hits = [
        {**vars(each), "data": webp(open_image(folder / each.name), SIDE), "moved": why}
        for each, why in zip(found, moved, strict=True)
    ]
    data = {"query": {"name": query.name, "data": webp(picture, SIDE)}, "hits": hits}
    return rendered("found.html.j2", data=embedded(data), about=about, explained=len(explained))
