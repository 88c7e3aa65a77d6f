"""Run one experiment:  python -m experiments.run --gin gin/mamba.gin

Renders or reads the benchmark, extracts descriptors (cached), trains a re-ranker or takes one as it is, evaluates it on
classes it has never seen, prints a table and leaves a run folder. After a kill, the same command resumes the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments._cli import LazyModule, guarded, run_folder, run_parser
from locore.utils.allocator import keep_freed_memory

config = LazyModule("experiments._config")
outputs = LazyModule("locore.pipeline.outputs")
pipeline = LazyModule("locore.pipeline.run")
settings = LazyModule("locore.pipeline.settings")

EXAMPLES = (
    "--gin gin/rwkv.gin --set 'Training.steps = 600' --out runs/rwkv-600",
    "--gin gin/mamba.gin --gin gin/data/folder.gin --set \"folder.path = 'photos/'\" --out runs/photos",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = run_parser("run", __doc__, "<name of the first gin file>", EXAMPLES)
    parser.add_argument_group("how far to run it").add_argument(
        "--train-only", action="store_true", help="train and validate: no test image is looked at, no table is made"
    )
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    keep_freed_memory()
    experiment, text = config.read_experiment(options.gin, options.set, options.seed)
    if options.dry_run:
        layout = settings.plan(experiment).layout
        print(text)
        print(f"Sequence: {layout.images} images x {layout.block} tokens = {layout.tokens} tokens")
        if experiment.model.learned:
            print(f"Start of the weights: {experiment.model.start_name}")
        print(f"Parameters: {config.count_parameters(experiment):,}")
        return 0
    with run_folder(options, Path(options.gin[0]).stem, text, "last.safetensors") as (folder, finished):
        if options.train_only:
            pipeline.train_experiment(experiment, folder, options.seed)
            return 0
        print(outputs.table(finished or pipeline.run_experiment(experiment, folder, options.seed, text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
