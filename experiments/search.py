"""Search your own photos:  python -m experiments.search --index photos/ --query q.jpg --reranker runs/mamba

Describes every photo of a folder (once: later calls describe what is new), finds those most similar to the query,
re-ranks them, prints the list and leaves it as a page that opens from disk.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.command import guarded, page_path


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
    parser.add_argument("--page", type=Path, default=Path("search.html"))
    options = parser.parse_args(arguments)
    return guarded(lambda: _search(options))


def _search(options: argparse.Namespace) -> int:
    from locore.descriptors.kept import opened
    from locore.files import write_text
    from locore.hits import reader, reordered
    from locore.index import index
    from locore.report.found import page

    if min(options.candidates, options.top) < 1:
        raise ValueError("--candidates and --top are 1 or more.")
    path = page_path(options.page, "--page")
    query = opened(options.query)
    if options.crop:
        left, top, right, bottom = options.crop
        if not (0 <= left < right <= query.width and 0 <= top < bottom <= query.height):
            raise ValueError(f"--crop {options.crop} is no part of the query's {query.width} x {query.height} pixels.")
        query = query.crop((left, top, right, bottom))
    model, extractor, size = reader(options.reranker)
    photos = index(options.index, extractor)
    asked = extractor.describe([query])
    nearest = photos.nearest(asked, options.candidates)
    hits = reordered(model, size, asked, photos.descriptors[nearest])[: options.top]
    rows = [(photos.names[nearest[hit.index]], hit.index + 1, hit.score) for hit in hits]
    for place, (name, before, score) in enumerate(rows, start=1):
        print(f"{place:>4}  {name}  (before {before}{'' if score is None else f', score {score:.3f}'})")
    write_text(path, page(query, options.index, rows))
    print(f"{path} shows them; {len(photos.names):,} photos were searched.")
    for name, why in photos.unreadable.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
