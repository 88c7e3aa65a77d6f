"""Compare backbones:  python -m experiments.compare gin/mamba.gin gin/rwkv.gin --seeds 0 1 --results results/glyphs

Runs every gin file with every seed, each in a process of its own, and makes one table (Markdown, CSV) and one picture.
A run whose metrics are in the results folder already, from the same configuration, is not run again; one that fails is
named in the table and does not end the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from experiments.command import guarded
from experiments.experiment import prepare
from locore import files
from locore.report import comparison

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(
        "experiments.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="FILE", help="gin files, one a row of the table")
    parser.add_argument("--gin", action="append", default=[], metavar="FILE", help="mixed into every row; repeatable")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="for every run")
    parser.add_argument(
        "--results", type=Path, help="tables, and metrics of runs and queries (default: results/<benchmark>)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders, with their weights")
    options = parser.parse_args(arguments)
    return guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Start experiments.compare by itself: each of its runs is a process of its own.")
    if len({Path(file).stem for file in options.rows}) < len(options.rows):
        raise ValueError("Two gin files have the same name, and rows are named by it; rename one.")
    # All configurations are read before the first run, so that a typing error costs no hour.
    configurations = {
        (Path(file).stem, seed): (file, *prepare([file, *options.gin], options.set, seed))
        for file in options.rows
        for seed in options.seeds
    }
    (first_name, _), (_, first, _) = next(iter(configurations.items()))
    for (name, _), (_, experiment, _) in configurations.items():
        for what in ("data", "depth", "extractor", "files"):
            if getattr(experiment, what) != getattr(first, what):
                raise ValueError(
                    f"'{name}' and '{first_name}' differ in {what}: {getattr(experiment, what)} and "
                    f"{getattr(first, what)}; rows of one table re-rank the same shortlists."
                )
    results = options.results or Path("results") / first.data.benchmark
    finished: dict[str, list[dict]] = defaultdict(list)
    failed: dict[str, str] = {}
    for (name, seed), (file, _, config) in configurations.items():
        result = results / f"{name}-seed{seed}.json"
        metrics = _known(result, config)
        if metrics is None:
            folder = options.runs / f"{name}-seed{seed}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"
            command = [
                sys.executable,
                "-m",
                "experiments.run",
                "--gin",
                file,
                "--seed",
                str(seed),
                "--out",
                str(folder),
            ]
            for mixed in options.gin:
                command += ["--gin", mixed]
            for line in options.set:
                command += ["--set", line]
            print(f"{name}, seed {seed}: {shlex.join(command)}", file=sys.stderr)
            error = _run(command)
            if error:
                failed[f"{name}, seed {seed}"] = error
                continue
            metrics = json.loads((folder / "metrics.json").read_text())
            files.write_text(result.with_suffix(".csv"), (folder / "queries.csv").read_text())
            files.write_json(result, metrics)
        finished[name].append(metrics)
    command_line = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    tables = {p: comparison.rows(finished, failed, p) for p in comparison.protocols(finished)}
    per_query = {
        name: [_queries(results / f"{name}-seed{run['seed']}.csv") for run in runs] for name, runs in finished.items()
    }
    text = []
    for protocol, rows in tables.items():
        heading = f"**{protocol}**\n\n" if len(tables) > 1 else ""
        text.append(heading + comparison.markdown(rows))
        if finished:
            shown = comparison.columns(finished, protocol)
            text.append(comparison.differences(per_query, shown, protocol))
    if finished:
        text.append(comparison.made(finished, command_line))
        comparison.picture(results / "table.png", finished)
    files.write_text(results / "table.md", "\n".join(part for part in text if part))
    files.write_text(results / "table.csv", comparison.csv_text(tables))
    files.write_text(
        results / "table.tex", "\n\n".join(f"% {p}\n{comparison.latex(t)}" for p, t in tables.items()) + "\n"
    )
    print((results / "table.md").read_text())
    return 1 if failed else 0


def _known(result: Path, config: str) -> dict | None:
    """The metrics of a finished run of this configuration, if the results folder has them."""
    try:
        metrics = json.loads(result.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return metrics if metrics.get("config") == config and result.with_suffix(".csv").exists() else None


def _queries(path: Path) -> list[dict[str, str]]:
    """The metrics of each query, as `experiments.run` left them."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _run(command: list[str]) -> str | None:
    """Run it with its progress shown; the last line that it wrote to stderr if it failed."""
    # Behind a pipe, rich has to be told that a person is watching, or its bars stand still until they are full.
    watched = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"} if sys.stderr.isatty() else {}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, **watched}
    )
    last, line = b"", bytearray()
    assert process.stderr is not None
    while byte := process.stderr.read(1):
        sys.stderr.buffer.write(byte)
        sys.stderr.buffer.flush()
        if byte in b"\r\n":
            last = bytes(line).strip() or last
            line.clear()
        else:
            line += byte
    last = bytes(line).strip() or last
    return None if process.wait() == 0 else f"exit status {process.returncode}, {last.decode(errors='replace')}"


if __name__ == "__main__":
    sys.exit(main())
