"""Run one experiment:  python -m experiments.run --gin gin/mamba.gin

Renders or reads the benchmark, extracts descriptors (cached), trains a list-wise re-ranker, evaluates it on classes it
has never seen, prints a table and leaves a run folder. After a kill, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import sys
from pathlib import Path

from experiments.command import guarded
from locore import files
from locore.allocator import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--gin", action="append", required=True, metavar="FILE", help="gin file; repeatable, later wins"
    )
    parser.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="one gin line")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/<name of the first gin file>[-seed<seed>])")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="it is an error if there is no run to go on with")
    parser.add_argument("--dry-run", action="store_true", help="print configuration, layout and parameters, and stop")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from experiments.experiment import prepare, table

    experiment, config = prepare(options.gin, options.set, options.seed)
    if options.dry_run:
        layout = experiment.layout
        print(config)
        print(f"Sequence: {layout.images} images x {layout.block} tokens = {layout.tokens} tokens")
        print(f"Parameters: {sum(p.numel() for p in experiment.model(options.seed).parameters()):,}")
        return 0
    seed = f"-seed{options.seed}" if options.seed else ""
    folder = options.out or Path("runs") / f"{Path(options.gin[0]).stem}{seed}"
    if options.resume and not (folder / "config.gin").exists():
        raise ValueError(f"There is no run to resume in '{folder}'.")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"The run folder '{folder}' is in use by another process; give another --out.") from None
        begun = (folder / "last.safetensors").exists() or (folder / "metrics.json").exists()
        if begun and (folder / "config.gin").read_text() != config:
            raise ValueError(f"The run folder '{folder}' has a run of another configuration; give another --out.")
        if (folder / "metrics.json").exists():
            print(f"The run in '{folder}' is finished; give another --out or --seed for a new one.")
            print(table(json.loads((folder / "metrics.json").read_text())))
            return 0
        files.write_text(folder / "config.gin", config)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            handlers=[logging.StreamHandler(), logging.FileHandler(folder / "log.txt")],
            force=True,
        )
        print(table(experiment.run(folder, options.seed, config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
