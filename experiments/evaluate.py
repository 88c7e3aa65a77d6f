"""Measure embeddings:  python -m experiments.evaluate --embeddings E.npy --labels Y.npy --ks 1 10 100 1000

R@k, mAP@R and R-precision of anyone's embeddings, by cosine similarity. Every row is a query for the others of its
class, or, with --gallery and --gallery-labels, for those of its class in the gallery (In-shop's protocol). The files
stay on disk: 10,000 queries against a million rows of 768 half-precision numbers take less than 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from experiments._cli import LazyModule, command_parser, guarded

embeddings_module = LazyModule("locore.evaluation.embeddings")

EXAMPLES = (
    "--embeddings E.npy --labels Y.npy",
    "--embeddings Q.npy --labels Y.npy --gallery G.npy --gallery-labels Z.npy --ks 1 10 20 30",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command_parser("evaluate", __doc__, EXAMPLES)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--embeddings", type=Path, required=True, metavar="E.npy", help="(Q, D) numbers")
    group.add_argument("--labels", type=Path, required=True, metavar="Y.npy", help="(Q,) numbers or strings")
    group.add_argument("--gallery", type=Path, metavar="G.npy", help="(N, D), if it is not the queries themselves")
    group.add_argument("--gallery-labels", type=Path, metavar="Z.npy", help="(N,)")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--ks", type=int, nargs="+", metavar="K", help="of the recalls (default: 1 10 100 1000, as far as they go)"
    )
    group.add_argument("--json", action="store_true", help="print the result as one JSON value in the last line")
    options = parser.parse_args(arguments)
    return guarded(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    if (options.gallery is None) != (options.gallery_labels is None):
        raise ValueError("--gallery and --gallery-labels go together; give both or neither.")
    if options.ks and min(options.ks) < 1:
        raise ValueError(f"--ks {min(options.ks)} must be 1 or more.")
    embeddings, labels = _read(options.embeddings), _read(options.labels)
    gallery = options.gallery and _read(options.gallery)
    gallery_labels = options.gallery_labels and _read(options.gallery_labels)
    ks = sorted(set(options.ks)) if options.ks else None
    metrics = embeddings_module.evaluate_embeddings(embeddings, labels, gallery, gallery_labels, ks)
    means = {name: round(100 * float(values.mean()), 4) for name, values in metrics.items()}
    for name, value in means.items():
        print(f"{name:>12}  {value:6.2f}")
    print(f"{'queries':>12}  {len(metrics['mAP@R']):,} of {len(embeddings):,}; the others have no positive")
    if options.json:
        print(json.dumps(means))
    return 0


def _read(path: Path) -> np.ndarray:
    """Read an array that stays on disk."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"There is no file '{path}'.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is not an array of numbers or strings that numpy.save wrote ({error}).") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"'{path}' holds several arrays; write the one that you mean with numpy.save.")
    return found


if __name__ == "__main__":
    sys.exit(main())
