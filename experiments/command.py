"""What the commands share: their arguments, their run folder, and how a mistake of the user ends in one sentence."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from locore import files


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a wrong input or a file that cannot be used is said in one sentence, with exit status 2."""
    try:
        return command()
    except (ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; a run goes on from its last checkpoint by the same command.", file=sys.stderr)
        return 130


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Run folders by their whole paths.

    Raises:
        ValueError: two have the same name, by which runs are told apart.
    """
    folders = [folder.resolve() for folder in given]
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError("Two run folders have the same name, and runs are named by it; rename one.")
    return folders


def page_path(path: Path, option: str) -> Path:
    """Where a page is written.

    Raises:
        ValueError: it is no name of a page, so that no photo is written over, or nothing can be written there.
    """
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"{option} {path} is no page; give a file that ends in .html.")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written in '{folder}'; give another.")
    return path


def sentence(error: Exception) -> str:
    """The message on one line, without the call stack that gin appends to it."""
    return re.sub(r"\s*In call to configurable .*", "", " ".join(str(error).split()))


def gin_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Arguments of every command that reads gin files."""
    parser = argparse.ArgumentParser(program, description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--gin", action="append", required=True, metavar="FILE", help="gin file; repeatable, later wins"
    )
    parser.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="one gin line")
    return parser


def seed_number(text: str) -> int:
    """Of the command line: whatever numpy and torch take."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def run_parser(program: str, description: str | None, folder: str) -> argparse.ArgumentParser:
    """Arguments of the commands that fill a run folder, by default `folder` below `runs`."""
    parser = gin_parser(program, description)
    parser.add_argument("--out", type=Path, help=f"run folder (default: runs/{folder}[-seed<seed>])")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--resume", action="store_true", help="it is an error if there is no run to go on with")
    parser.add_argument("--dry-run", action="store_true", help="print configuration and sizes, and stop")
    return parser


@contextmanager
def run_folder(
    options: argparse.Namespace, name: str, config: str, checkpoint: str
) -> Iterator[tuple[Path, dict | None]]:
    """The folder of a run, locked, its configuration written and its log open; and the metrics of a finished run.

    Args:
        name: of the folder below `runs`, where the user gives none. config: what tells one run from another.
        checkpoint: the first one, below the folder; from then on there is something to lose.

    Raises:
        ValueError: the folder is in use, or has a run of another configuration, or there is none to resume.
    """
    from locore import processes  # which takes a second, that --help need not wait for

    folder = options.out or Path("runs") / (name + (f"-seed{options.seed}" if options.seed else ""))
    if not processes.first():  # the first one has the folder, and talks
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield folder, processes.agreed(None)
        return
    if options.resume and not (folder / "config.gin").exists():
        raise ValueError(f"There is no run to resume in '{folder}'.")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"The run folder '{folder}' is in use by another process; give another --out.") from None
        known = (folder / "config.gin").read_text() if (folder / "config.gin").exists() else None
        begun = known is not None and any((folder / name).exists() for name in ("metrics.json", checkpoint))
        if begun and known != config:
            raise ValueError(f"The run folder '{folder}' has a run of another configuration; give another --out.")
        if (folder / "metrics.json").exists():
            try:
                finished = json.loads((folder / "metrics.json").read_text())
            except json.JSONDecodeError:
                raise ValueError(
                    f"'{folder / 'metrics.json'}' is damaged; delete it, and the run ends again."
                ) from None
            print(f"The run in '{folder}' is finished; give another --out or --seed for a new one.")
            yield folder, processes.agreed(finished)
            return
        files.write_text(folder / "config.gin", config)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            handlers=[logging.StreamHandler(), logging.FileHandler(folder / "log.txt")],
            force=True,
        )
        yield folder, processes.agreed(None)
