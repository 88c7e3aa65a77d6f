"""Train global descriptors:  python -m experiments.embed --gin gin/embed/multi_similarity.gin

Fine-tunes a vision model with a metric-learning loss on the training classes of a benchmark, measures it on the test
classes, and leaves `embedder.safetensors` in the run folder. To re-rank what it finds:

  python -m experiments.run --gin gin/mamba.gin --set "Experiment.embedder = 'runs/embed-multi_similarity'"

With `Embedding.cross_fit = True` it also trains one embedder on each half of the training classes. Training images are
then described by the embedder that has never seen their class, as no embedder has seen a test class.
After a kill, the same command resumes the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments._cli import LazyModule, guarded, run_folder, run_parser
from locore.utils.allocator import keep_freed_memory

config = LazyModule("experiments._config")
pipeline = LazyModule("locore.pipeline.embedding")

EXAMPLES = (
    "--gin gin/embed/multi_similarity.gin --gin gin/data/emoji.gin --set 'Embedding.cross_fit = True'",
    "--gin gin/embed/head.gin --gin gin/data/folder.gin --set \"folder.path = 'photos/'\" --out runs/head",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = run_parser("embed", __doc__, "embed-<name of the first gin file>", EXAMPLES).parse_args(arguments)
    return guarded(lambda: _embed(options))


def _embed(options: argparse.Namespace) -> int:
    keep_freed_memory()
    embedding, text = config.read(config.embedding, options.gin, options.set, options.seed)
    if options.dry_run:
        print(text)
        print(f"Parameters: {embedding.count_parameters():,}")
        return 0
    name = f"embed-{Path(options.gin[0]).stem}"
    with run_folder(options, name, text, "embedder/last.safetensors") as (folder, finished):
        metrics = finished or pipeline.run_embedding(embedding, folder, options.seed, text)
        print(pipeline.embedding_table(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
