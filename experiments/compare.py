"""Compare backbones:  python -m experiments.compare gin/mamba.gin gin/rwkv.gin --seeds 0 1 --results results/glyphs

Runs every gin file with every seed, each in a process of its own, and makes one table (Markdown, CSV) and one picture.
A run whose metrics are in the results folder already, from the same configuration, is not run again; one that fails is
named in the table and does not end the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from experiments.command import guarded
from experiments.experiment import prepare
from locore import files
from locore.report.pictures import save

log = logging.getLogger(__name__)

COLUMNS = ("R@1", "R@10", "mAP@R")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(
        "experiments.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("gin", nargs="+", metavar="FILE", help="gin files, one a row of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="'CLASS.OPTION = VALUE'", help="for every run")
    parser.add_argument("--results", type=Path, help="small files worth keeping (default: results/<benchmark>)")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders, with their weights")
    options = parser.parse_args(arguments)
    return guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if len({Path(file).stem for file in options.gin}) < len(options.gin):
        raise ValueError("Two gin files have the same name, and rows are named by it; rename one.")
    # All configurations are read before the first run, so that a typing error costs no hour.
    configurations = {
        (Path(file).stem, seed): (file, *prepare([file], options.set, seed))
        for file in options.gin
        for seed in options.seeds
    }
    first = next(iter(configurations.values()))[1]
    results = options.results or Path("results") / first.benchmark
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
            for line in options.set:
                command += ["--set", line]
            print(f"{name}, seed {seed}: {shlex.join(command)}", file=sys.stderr)
            error = _run(command)
            if error:
                failed[f"{name}, seed {seed}"] = error
                continue
            metrics = json.loads((folder / "metrics.json").read_text())
            files.write_json(result, metrics)
        finished[name].append(metrics)
    command_line = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    rows = _rows(finished, failed)
    files.write_text(results / "table.md", _markdown(rows, finished, command_line))
    files.write_text(results / "table.csv", _csv(rows))
    if finished:
        _picture(results / "table.png", finished)
    print((results / "table.md").read_text())
    return 1 if failed else 0


def _known(result: Path, config: str) -> dict | None:
    """The metrics of a finished run of this configuration, if the results folder has them."""
    try:
        metrics = json.loads(result.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return metrics if metrics.get("config") == config else None


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


def _rows(finished: dict[str, list[dict]], failed: dict[str, str]) -> list[dict[str, str]]:
    """The table's rows as text: global, each backbone, the oracle; failed runs last."""

    def spread(values: list[float], digits: int = 1) -> str:
        deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{deviation}"

    rows: list[dict[str, str]] = []
    every = [metrics for runs in finished.values() for metrics in runs]
    if every:
        rows.append({"": "global", **{n: f"{every[0]['global'][n]:.1f}" for n in COLUMNS}})
    for name, runs in finished.items():
        row = {"": name, "parameters": f"{runs[0]['parameters'] / 1e6:.2f} M"}
        for n in COLUMNS:
            gain = mean(r["reranked"][n] - r["global"][n] for r in runs)
            row[n] = f"{spread([r['reranked'][n] for r in runs])} ({gain:+.1f})"
        row["ensemble mAP@R"] = spread([r["ensemble"]["mAP@R"] for r in runs])
        row["training s"] = spread([r["seconds"]["training"] for r in runs], 0)
        row["ms a list"] = spread([r["latency_ms"] for r in runs])
        row["peak MB"] = spread([r["peak_memory_mb"] for r in runs], 0)
        rows.append(row)
    if every:
        rows.append({"": "oracle", **{n: f"{every[0]['oracle'][n]:.1f}" for n in COLUMNS}})
    rows += [{"": name, "R@1": f"failed: {why}"} for name, why in failed.items()]
    return rows


HEADER = ("", "parameters", *COLUMNS, "ensemble mAP@R", "training s", "ms a list", "peak MB")


def _markdown(rows: list[dict[str, str]], finished: dict[str, list[dict]], command: str) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row.get(column, "") for column in HEADER) + " |" for row in rows]
    if finished:
        one = next(iter(finished.values()))[0]
        lines += [
            "",
            f"Re-ranked: the first {one['candidates']} of each of {one['queries']} queries of `{one['benchmark']}`; "
            "mean ± deviation over seeds, in brackets the difference to global. Oracle: a perfect order of the same "
            "shortlist. Training with its validations; re-ranking in batches; memory of the whole process.",
            "",
            f"Command: `{command}`. Machine: {one['machine']}. "
            f"Commits: {', '.join(sorted({r['commit'] for runs in finished.values() for r in runs}))}.",
        ]
    return "\n".join(lines) + "\n"


def _csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _picture(path: Path, finished: dict[str, list[dict]]) -> None:
    """A panel a metric: a bar from global to the mean, every seed a dot, global and oracle as lines."""
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(12, 0.5 * len(finished) + 1.8), layout="constrained")
    names = list(finished)
    one = finished[names[0]][0]
    for axis, metric in zip(axes, COLUMNS, strict=True):
        values = [[r["reranked"][metric] for r in finished[name]] for name in names]
        start = one["global"][metric]
        axis.barh(names, [mean(v) - start for v in values], left=start, color="#c6dbef")
        for place, dots in enumerate(values):
            axis.plot(dots, [place] * len(dots), "o", color="#08519c", markersize=5)
        for reference, style in (("global", "--"), ("oracle", ":")):
            axis.axvline(one[reference][metric], linestyle=style, color="0.3", label=reference)
        everything = [x for v in values for x in v] + [one["global"][metric], one["oracle"][metric]]
        margin = 0.1 * (max(everything) - min(everything)) + 0.1
        axis.set(xlim=(min(everything) - margin, max(everything) + margin), title=f"{metric}, %")
        axis.invert_yaxis()
        if axis is not axes[0]:
            axis.set_yticklabels([])
    axes[-1].legend(loc="lower right")
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
