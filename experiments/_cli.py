"""What the commands share: arguments, the run folder, and how an error of the user ends in one sentence."""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from locore.utils import files


class LazyModule:
    """A module that is imported when one of its names is first used, so that --help does not wait for torch."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


config = LazyModule("experiments._config")
distributed = LazyModule("locore.utils.distributed")


def command_parser(name: str, description: str | None, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a command.

    Args:
        name: of the command.
        description: its module's docstring.
        examples: its arguments in two cases that people have, shown at the end of the help.
    """
    lines = "\n".join(f"  python -m experiments.{name} {example}" for example in examples)
    return argparse.ArgumentParser(
        f"python -m experiments.{name}",
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawTextHelpFormatter,
    )


def typed_command(name: str, arguments: Sequence[str] | None) -> str:
    """Return a command as one types it, for the tables that it makes; also where `locore` has started it.

    Args:
        name: of the command.
        arguments: of its `main`.
    """
    return shlex.join(["python", "-m", f"experiments.{name}", *(sys.argv[1:] if arguments is None else arguments)])


def add_gin_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options of every command that reads gin files."""
    group = parser.add_argument_group("what to run")
    group.add_argument(
        "--gin", action="append", required=required, default=None if required else [], metavar="FILE",
        help="gin file, by its path or below gin/; repeatable, later files win",
    )  # fmt: skip
    group.add_argument(
        "--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="one setting; repeatable, wins"
    )


def run_parser(
    name: str, description: str | None, folder: str, examples: Sequence[str], gin_required: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of a command that fills a run folder, by default `folder` below `runs`."""
    parser = command_parser(name, description, examples)
    add_gin_options(parser, gin_required)
    group = parser.add_argument_group("how to run it")
    group.add_argument("--out", type=Path, help=f"run folder (default: runs/{folder}[-seed<seed>])")
    group.add_argument("--seed", type=seed_number, default=0, help="of everything random (default 0)")
    group.add_argument("--resume", action="store_true", help="fail if there is no run to resume")
    group.add_argument("--dry-run", action="store_true", help="print the configuration and sizes, and stop")
    return parser


def seed_number(text: str) -> int:
    """Parse a seed: whatever numpy and torch take."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least {least}")
    return int(text)


def rate_text(text: str) -> str:
    """Check a learning rate, and return it as it was written."""
    try:
        if 0 < float(text) < math.inf:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is not a learning rate, a number above 0")


def guarded(command: Callable[[], int]) -> int:
    """Run a command; report wrong input, or a file that cannot be used, in one sentence, with exit status 2."""
    try:
        return command()
    except (ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes a run from its last checkpoint.", file=sys.stderr)
        return 130


def sentence(error: Exception) -> str:
    """Return the message of an error on one line, without the call stack that gin appends to it."""
    return re.sub(r"\s*In call to configurable .*", "", " ".join(str(error).split()))


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Return run folders by their absolute paths.

    Raises:
        ValueError: two have the same name, by which runs are told apart.
    """
    folders = [folder.resolve() for folder in given]
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError("Two run folders have the same name, and runs are named by it; rename one.")
    return folders


def page_path(path: Path, option: str) -> Path:
    """Check where a page is to be written.

    Raises:
        ValueError: it is not the name of a page, so that no photo is overwritten, or nothing can be written there.
    """
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"{option} {path} is not a page; give a file that ends in .html.")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written in '{folder}'; give another folder.")
    return path


@contextmanager
def run_folder(
    options: argparse.Namespace, name: str, config_text: str, checkpoint: str
) -> Iterator[tuple[Path, dict | None]]:
    """Open the folder of a run: lock it, write its configuration and start its log.

    Args:
        options: of the command.
        name: of the folder below `runs`, if --out is not given.
        config_text: what tells one run from another.
        checkpoint: the first checkpoint, below the folder; from then on there is something to lose.

    Yields:
        The folder, and the metrics if the run is finished.

    Raises:
        ValueError: the folder is in use, or has a run of another configuration, or there is none to resume.
    """
    folder = options.out or Path("runs") / (name + (f"-seed{options.seed}" if options.seed else ""))
    if not distributed.first():  # the first process owns the folder, and prints
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield folder, distributed.agreed(None)
        return
    path = folder / "config.gin"
    if options.resume and not path.exists():
        raise ValueError(f"There is no run to resume in '{folder}'.")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"The run folder '{folder}' is in use by another process; give another --out.") from None
        known = path.read_text() if path.exists() else None
        started = known is not None and any((folder / name).exists() for name in ("metrics.json", checkpoint))
        if started and known != config_text and not config.same_run(config_text, known):
            raise ValueError(f"The run folder '{folder}' has a run of another configuration; give another --out.")
        if (folder / "metrics.json").exists():
            try:
                finished = json.loads((folder / "metrics.json").read_text())
            except json.JSONDecodeError:
                raise ValueError(f"'{folder / 'metrics.json'}' is damaged; delete it to end the run again.") from None
            print(f"The run in '{folder}' is finished; give another --out or --seed for a new one.")
            yield folder, distributed.agreed(finished)
            return
        files.write_text(path, config_text)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            handlers=[logging.StreamHandler(), logging.FileHandler(folder / "log.txt")],
            force=True,
        )
        yield folder, distributed.agreed(None)
