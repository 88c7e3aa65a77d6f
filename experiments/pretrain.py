"""Pretrain a backbone without any image:  python -m experiments.pretrain --gin gin/mamba.gin

Trains a list-wise re-ranker on synthetic lists: views of random objects, look-alikes, common backgrounds (see
locore/training/synthetic.py). Its weights then start a training on any descriptors, by the run folder as Model.start:

  python -m experiments.run --gin gin/mamba.gin --set "Model.start = 'runs/pretrain-mamba'"

The package carries such weights of some backbones, which `Model.start = 'synthetic'` takes. With
`Training.learning_rate = 0.0` the pretrained re-ranker is evaluated as it is. Of the gin file only the model is read.
After a kill, the same command resumes the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments._cli import LazyModule, guarded, run_folder, run_parser
from locore.utils.allocator import keep_freed_memory

config = LazyModule("experiments._config")
pipeline = LazyModule("locore.pipeline.pretraining")

EXAMPLES = (
    "--gin gin/mamba.gin",
    "--gin gin/list_attention.gin --set 'Pretraining.steps = 10000' --out runs/longer",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = run_parser("pretrain", __doc__, "pretrain-<name of the first gin file>", EXAMPLES).parse_args(arguments)
    return guarded(lambda: _pretrain(options))


def _pretrain(options: argparse.Namespace) -> int:
    keep_freed_memory()
    pretraining, text = config.read(config.pretraining, options.gin, options.set, options.seed)
    if options.dry_run:
        print(text)
        print(f"Parameters: {pretraining.count_parameters():,}")
        return 0
    name = f"pretrain-{Path(options.gin[0]).stem}"
    with run_folder(options, name, text, "last.safetensors") as (folder, finished):
        metrics = finished or pipeline.run_pretraining(pretraining, folder, options.seed, text)
        print(pipeline.pretraining_table(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
