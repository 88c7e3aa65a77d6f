"""Extract descriptors to files:  python -m experiments.extract --gin gin/extract/dinov2.gin --gin gin/data/sop.gin

Describes queries, gallery and training images of a benchmark and leaves, of each, `*_global.f32` (raw float32) and
`*_local.hdf5` in the folder, as AMES and LOCORE read them. To re-rank with them:

  python -m experiments.run --gin gin/paper/landmarks/roxford5k.gin --gin gin/paper/landmarks/extracted.gin \\
      --set "Files.root = 'runs/extract-dinov2'"

Several processes share the images: accelerate launch --multi_gpu --num_processes 4 -m experiments.extract …
After a kill, the same command resumes the extraction.

With --rehearse it writes random descriptors instead: Revisited Oxford with distractors in the same formats, and random
weights of the tiny Longformer, so that time, memory and disk can be measured before the real files are there. What such
a run finds means nothing. A million distractors take 16 GB with 50 locals of width 128, 80 GB with DINOv2's 768.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments._cli import LazyModule, guarded, run_folder, run_parser
from locore.utils.allocator import keep_freed_memory

config = LazyModule("experiments._config")
pipeline = LazyModule("locore.pipeline.extraction")
rehearsal = LazyModule("locore.pipeline.rehearsal")

EXAMPLES = (
    "--gin gin/extract/resnet50.gin --gin gin/data/folder.gin --set \"folder.path = 'photos/'\"",
    "--rehearse data/roxford5k --distractors 100000 --out data/rehearsal",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = run_parser("extract", __doc__, "extract-<name of the first gin file>", EXAMPLES, gin_required=False)
    group = parser.add_argument_group("random descriptors instead of real ones")
    group.add_argument("--rehearse", type=Path, metavar="FOLDER", help="the folder with gnd_roxford5k.pkl")
    group.add_argument("--distractors", type=int, default=1_001_001, help="number of them (default 1001001)")
    group.add_argument("--local-dim", type=int, default=128, help="width of a local descriptor (default 128)")
    options = parser.parse_args(arguments)
    return guarded(lambda: _extract(options))


def _extract(options: argparse.Namespace) -> int:
    if bool(options.gin) == bool(options.rehearse):
        raise ValueError("Give --gin files to extract real descriptors, or --rehearse for random ones.")
    if options.rehearse:
        if not options.out:
            raise ValueError("--rehearse needs --out, the folder that is written.")
        rehearsal.write(options.rehearse, options.out, options.distractors, options.local_dim)
        return 0
    keep_freed_memory()
    extraction, text = config.read_extraction(options.gin, options.set, options.seed)
    if options.dry_run:
        print(text)
        widths, count = extraction.written_widths, extraction.extractor.locals_per_image
        print(f"Descriptors: {count} locals an image; widths {widths}")
        return 0
    name = f"extract-{Path(options.gin[0]).stem}"
    with run_folder(options, name, text, pipeline.PARTS) as (folder, finished):
        if finished:
            _check(folder, finished)
        metrics = finished or pipeline.run_extraction(extraction, folder, text, options.seed)
        print(pipeline.extraction_table(metrics))
    return 0


def _check(folder: Path, finished: dict) -> None:
    """Refuse a finished extraction whose files have been deleted; the folder may have been moved."""
    for path in (folder / Path(name).name for names in finished["files"].values() for name in names):
        if not path.exists():
            raise ValueError(f"'{path}' is gone; delete '{folder / 'metrics.json'}' to extract it again.")


if __name__ == "__main__":
    sys.exit(main())
