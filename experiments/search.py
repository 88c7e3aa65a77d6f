"""Search your own photos:  python -m experiments.search --index photos/ --query q.jpg --reranker runs/mamba

Describes every photo of a folder (once: later calls describe what is new), finds those most similar to the query,
re-ranks them, prints the list and leaves it as a page that opens from disk: a click on a photo shows its scores and,
under a list-wise run, which parts of it, of the query and of which others moved the score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments._cli import LazyModule, command_parser, guarded, page_path

attribution = LazyModule("locore.probes.attribution")
files = LazyModule("locore.utils.files")
hits = LazyModule("locore.search.hits")
image_cache = LazyModule("locore.descriptors.image_cache")
indexing = LazyModule("locore.search.index")
search_page = LazyModule("locore.report.search_page")

EXAMPLES = (
    "--index photos/ --query q.jpg --crop 40 40 400 300",
    "--index photos/ --query q.jpg --reranker runs/mamba --top 20 --page found.html",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command_parser("search", __doc__, EXAMPLES)
    group = parser.add_argument_group("what is searched")
    group.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="photos, in sub-folders as well")
    group.add_argument("--query", type=Path, required=True, metavar="IMAGE")
    group.add_argument("--crop", type=int, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="of the query, in pixels")
    group = parser.add_argument_group("how it is re-ranked")
    group.add_argument(
        "--reranker",
        default="synthetic",
        help="a run folder, or a re-ranker without weights, whose score is combined with the search's similarity\n"
        "(default: synthetic, a list-wise one that was trained without images; chamfer takes a tenth of the time)",
    )
    group.add_argument("--candidates", type=int, default=100, help="how many are re-ranked (default 100)")
    group = parser.add_argument_group("results")
    group.add_argument("--top", type=int, default=20, help="how many are shown (default 20)")
    group.add_argument(
        "--explained",
        type=int,
        default=10,
        metavar="N",
        help="first photos of a list-wise run of which the page shows what moved their score (default 10; each takes\n"
        "about three times as long as re-ranking; 0 = none)",
    )
    group.add_argument("--page", type=Path, default=Path("search.html"), help="page (default: search.html)")
    options = parser.parse_args(arguments)
    return guarded(lambda: _search(options))


def _search(options: argparse.Namespace) -> int:
    if min(options.candidates, options.top) < 1 or options.explained < 0:
        raise ValueError("--candidates and --top must be 1 or more, and --explained 0 or more.")
    path = page_path(options.page, "--page")
    picture = image_cache.open_image(options.query)
    if options.crop:
        picture = _cropped(picture, *options.crop)
    model, extractor, size = hits.load_with_extractor(options.reranker)
    photos = indexing.index(options.index, extractor)
    query = extractor.describe([picture])
    similarities, nearest = photos.nearest(query, options.candidates)
    ranked = hits.rerank_described(model, size, query, photos.descriptors[nearest])
    found = [
        search_page.Found(photos.names[nearest[hit.index]], hit.index + 1, float(similarities[hit.index]), hit.score)
        for hit in ranked[: options.top]
    ]
    for place, hit in enumerate(found, start=1):
        print(f"{place:>4}  {hit.name}  (before {hit.before}{'' if hit.score is None else f', score {hit.score:.3f}'})")
    first = min(options.explained, len(found))
    order = nearest[[hit.index for hit in ranked]]
    explained = attribution.explain_one(model, query, photos.descriptors, order, first, size)
    about = (
        f"{len(photos.names):,} photos of '{options.index}' searched by their global descriptors, the first "
        f"{len(ranked)} re-ranked by '{options.reranker}'."
    )
    files.write_text(path, search_page.page(options.query, picture, options.index, about, found, explained))
    print(f"{path} shows them; {len(photos.names):,} photos were searched.")
    for name, why in photos.unreadable.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    return 0


def _cropped(picture: Any, left: int, top: int, right: int, bottom: int) -> Any:
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError(
            f"--crop {left} {top} {right} {bottom} is not inside the query's {picture.width} x {picture.height} pixels."
        )
    return picture.crop((left, top, right, bottom))


if __name__ == "__main__":
    sys.exit(main())
