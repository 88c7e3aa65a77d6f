"""Measure embeddings:  python -m experiments.evaluate --embeddings E.npy --labels Y.npy --ks 1 10 100 1000

R@k, mAP@R and R-precision of anyone's embeddings, by cosine. Every row asks for the others of its class, or, with
--gallery and --gallery-labels, for those of its class in the gallery (In-shop's protocol). The files stay on disk:
10,000 queries against a million rows of 768 half-precision numbers take less than 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from experiments.command import guarded


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--embeddings", type=Path, required=True, metavar="E.npy", help="(Q, D) numbers")
    parser.add_argument("--labels", type=Path, required=True, metavar="Y.npy", help="(Q,) numbers or strings")
    parser.add_argument("--gallery", type=Path, metavar="G.npy", help="(N, D), if it is not the queries themselves")
    parser.add_argument("--gallery-labels", type=Path, metavar="Z.npy", help="(N,)")
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="K", help="of the recalls")
    parser.add_argument("--json", action="store_true", help="the result as one JSON value in the last line")
    options = parser.parse_args(arguments)
    return guarded(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    from locore.evaluation import evaluate_embeddings

    if (options.gallery is None) != (options.gallery_labels is None):
        raise ValueError("--gallery and --gallery-labels go together.")
    if min(options.ks) < 1:
        raise ValueError(f"--ks {min(options.ks)}: a recall is over one image or more.")
    embeddings, labels = _read(options.embeddings), _read(options.labels)
    gallery = options.gallery and _read(options.gallery)
    gallery_labels = options.gallery_labels and _read(options.gallery_labels)
    metrics = evaluate_embeddings(embeddings, labels, gallery, gallery_labels, sorted(set(options.ks)))
    means = {name: round(100 * float(values.mean()), 4) for name, values in metrics.items()}
    for name, value in means.items():
        print(f"{name:>12}  {value:6.2f}")
    print(f"{'queries':>12}  {len(metrics['mAP@R']):,} of {len(embeddings):,}; the others have no right image")
    if options.json:
        print(json.dumps(means))
    return 0


def _read(path: Path) -> np.ndarray:
    """An array that stays on disk."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"There is no file '{path}'.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is no array of numbers or strings that numpy.save wrote ({error}).") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"'{path}' holds several arrays; write the one that is meant with numpy.save.")
    return found


if __name__ == "__main__":
    sys.exit(main())
