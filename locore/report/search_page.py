"""One self-contained HTML page of the result of a search."""

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
        similarity: of the global descriptors.
        score: of the re-ranker; None if it gives an order alone.
    """

    name: str
    before: int
    similarity: float
    score: float | None


def page(
    query: Path, picture: Image.Image, folder: Path, about: str, found: list[Found], explained: Sequence[Explained]
) -> str:
    """Return the page.

    Args:
        query: file of the query.
        picture: the query, cropped if it was.
        folder: of the photos.
        about: a sentence on what was searched, and how.
        found: the photos, best first.
        explained: explanations of the first scores, see `explain`.
    """
    moved = [*explained, *[None] * (len(found) - len(explained))]
    hits = [
        {**vars(each), "data": webp(open_image(folder / each.name), SIDE), "moved": why}
        for each, why in zip(found, moved, strict=True)
    ]
    data = {"query": {"name": query.name, "data": webp(picture, SIDE)}, "hits": hits}
    return rendered("found.html.j2", data=embedded(data), about=about, explained=len(explained))
