"""Re-rank your own photos:  python examples/rerank_photos.py query.jpg first.jpg second.jpg third.jpg

Give the photos in the order in which your search found them. The default was trained without images.
A run folder of `experiments.run` in the place of the name uses a trained re-ranker.
"""

import argparse

import locore

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("query")
parser.add_argument("found", nargs="+", help="photos that were found, best first")
parser.add_argument("--reranker", help="a name, or a run folder (default: synthetic)")
options = parser.parse_args()

for place, hit in enumerate(locore.rerank(options.query, options.found, options.reranker), start=1):
    score = "" if hit.score is None else f"  {hit.score:.3f}"
    print(f"{place:3d}  {options.found[hit.index]}{score}  (was {hit.index + 1})")
