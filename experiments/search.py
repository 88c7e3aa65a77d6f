"""Search your own photos:  python -m experiments.search --index photos/ --query q.jpg --reranker runs/mamba

Describes every photo of a folder (once: later calls describe what is new), finds those most similar to the query,
re-ranks them, prints the list and leaves it as a page that opens from disk: a click on a photo shows its scores and,
under a list-wise run, which parts of it, of the query and of which others moved the score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import guarded, page_path

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from locore.descriptors import Descriptors
    from locore.evaluation.explain import Explained
    from locore.reranking import Reranker


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.search", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="photos, in sub-folders as well")
    parser.add_argument("--query", type=Path, required=True, metavar="IMAGE")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="of the query, in pixels")
    parser.add_argument(
        "--reranker", default="chamfer", help="a run folder, or one without weights: geometric, superglobal, …"
    )
    parser.add_argument("--candidates", type=int, default=100, help="how many are re-ranked")
    parser.add_argument("--top", type=int, default=20, help="how many are shown")
    parser.add_argument(
        "--explained",
        type=int,
        default=10,
        metavar="N",
        help="first photos of a list-wise run's list of which the page shows what moved their score (default 10; each\n"
        "takes about three times as long as re-ranking; 0 = none)",
    )
    parser.add_argument("--page", type=Path, default=Path("search.html"))
    options = parser.parse_args(arguments)
    return guarded(lambda: _search(options))


def _search(options: argparse.Namespace) -> int:
    from locore.descriptors.kept import opened
    from locore.files import write_text
    from locore.hits import reader, reordered
    from locore.index import index
    from locore.report.found import Found, page

    if min(options.candidates, options.top) < 1 or options.explained < 0:
        raise ValueError("--candidates and --top are 1 or more, --explained 0 or more.")
    path = page_path(options.page, "--page")
    picture = opened(options.query)
    if options.crop:
        picture = _cropped(picture, *options.crop)
    model, extractor, size = reader(options.reranker)
    photos = index(options.index, extractor)
    query = extractor.describe([picture])
    similarities, nearest = photos.nearest(query, options.candidates)
    hits = reordered(model, size, query, photos.descriptors[nearest])
    found = [
        Found(photos.names[nearest[hit.index]], hit.index + 1, float(similarities[hit.index]), hit.score)
        for hit in hits[: options.top]
    ]
    for place, hit in enumerate(found, start=1):
        print(f"{place:>4}  {hit.name}  (before {hit.before}{'' if hit.score is None else f', score {hit.score:.3f}'})")
    first = min(options.explained, len(found))
    explained = _explained(model, query, photos.descriptors, nearest[[hit.index for hit in hits]], first, size)
    about = (
        f"{len(photos.names):,} photos of '{options.index}' searched by their global descriptors, the first "
        f"{len(hits)} re-ranked by '{options.reranker}'."
    )
    write_text(path, page(options.query, picture, options.index, about, found, explained))
    print(f"{path} shows them; {len(photos.names):,} photos were searched.")
    for name, why in photos.unreadable.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    return 0


def _cropped(picture: Image, left: int, top: int, right: int, bottom: int) -> Image:
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError(
            f"--crop {left} {top} {right} {bottom} is no part of the query's {picture.width} x {picture.height} pixels."
        )
    return picture.crop((left, top, right, bottom))


def _explained(
    model: Reranker, query: Descriptors, photos: Descriptors, listed: Tensor, first: int, size: int | None
) -> list[Explained]:
    """What moved the scores of the first photos of the re-ranked list; nothing where the re-ranker reads pairs."""
    import numpy as np

    from locore.evaluation.explain import explain
    from locore.reranking import ListwiseReranker

    if not isinstance(model, ListwiseReranker) or not first:
        return []
    count = len(listed)
    lists = {
        "rows": np.zeros(1, dtype=np.int64),
        "indices": listed.numpy()[None],
        "order": np.arange(count)[None],
        "junk": np.zeros((1, count), dtype=bool),
    }
    device = next(model.parameters()).device
    return explain(model, query, photos, lists, [0], first, size or count, device)[0]


if __name__ == "__main__":
    sys.exit(main())
