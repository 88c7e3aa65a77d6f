"""Extract descriptors:  python -m experiments.extract --gin gin/extract/dinov2.gin --gin gin/data/roxford5k.gin

Describes queries, gallery and training images of a benchmark and leaves, of each, `*_global.f32` (raw float32) and
`*_local.hdf5` in the folder, as AMES and LOCORE read them. To re-rank with them:

  python -m experiments.run --gin gin/landmarks/roxford5k.gin --gin gin/landmarks/extracted.gin \\
      --set "Files.root = 'runs/extract-dinov2'"

Several processes share the images: accelerate launch --multi_gpu --num_processes 4 -m experiments.extract …
After a kill, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.command import guarded, run_folder, run_parser
from locore.allocator import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = run_parser("experiments.extract", __doc__, "extract-<name of the first gin file>").parse_args(arguments)
    return guarded(lambda: _extract(options))


def _extract(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from experiments.extraction import PARTS, prepare, said

    extraction, config = prepare(options.gin, options.set, options.seed)
    if options.dry_run:
        print(config)
        print(f"Descriptors: {extraction.extractor.locals_per_image} locals an image; widths {extraction.written}")
        return 0
    name = f"extract-{Path(options.gin[0]).stem}"
    with run_folder(options, name, config, PARTS) as (folder, finished):
        if finished:
            _check(folder, finished)
        print(said(finished or extraction.run(folder, config, options.seed)))
    return 0


def _check(folder: Path, finished: dict) -> None:
    """Refuse a finished extraction whose files have been deleted; the folder may have been moved."""
    for path in (folder / Path(name).name for names in finished["files"].values() for name in names):
        if not path.exists():
            raise ValueError(f"'{path}' is gone; delete '{folder / 'metrics.json'}' to extract it again.")


if __name__ == "__main__":
    sys.exit(main())
