"""Train global descriptors:  python -m experiments.embed --gin gin/embed/multi_similarity.gin

Fine-tunes a vision model with a metric-learning loss on the training classes of a benchmark, measures it on the test
classes, and leaves `embedder.safetensors` in the run folder. To re-rank what it finds:

  python -m experiments.run --gin gin/mamba.gin --set "Experiment.embedder = 'runs/embed-multi_similarity'"

With `Embedding.halves = True` it also trains one embedder on each half of the training classes; then training images
are described by the one that has never seen their class, as no network has seen a test class.
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
    options = run_parser("experiments.embed", __doc__, "embed-<name of the first gin file>").parse_args(arguments)
    return guarded(lambda: _embed(options))


def _embed(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from experiments.embedding import prepare, table

    embedding, config = prepare(options.gin, options.set, options.seed)
    if options.dry_run:
        print(config)
        print(f"Parameters: {embedding.parameters():,}")
        return 0
    with run_folder(options, f"embed-{Path(options.gin[0]).stem}", config, "embedder/last.safetensors") as (
        folder,
        finished,
    ):
        print(table(finished or embedding.run(folder, options.seed, config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
