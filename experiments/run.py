"""Run one experiment:  python -m experiments.run --gin gin/mamba.gin

Renders or reads the benchmark, extracts descriptors (cached), trains a re-ranker or takes one as it is, evaluates it on
classes it has never seen, prints a table and leaves a run folder. After a kill, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.command import guarded, run_folder, run_parser
from locore.allocator import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = run_parser("experiments.run", __doc__, "<name of the first gin file>").parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from experiments.experiment import prepare
    from experiments.outcome import table
    from experiments.running import run

    experiment, config = prepare(options.gin, options.set, options.seed)
    if options.dry_run:
        layout = experiment.layout
        print(config)
        print(f"Sequence: {layout.images} images x {layout.block} tokens = {layout.tokens} tokens")
        print(f"Parameters: {experiment.sizes[0]:,}")
        return 0
    with run_folder(options, Path(options.gin[0]).stem, config, "last.safetensors") as (folder, finished):
        print(table(finished or run(experiment, folder, options.seed, config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
