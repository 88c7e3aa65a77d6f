"""The training curves of a board in `curves.csv`, and what rows have reached after the same time of training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from locore.utils.files import read_csv, write_csv

CURVES = "curves.csv"
HEADER = ("row", "seed", "step", "seconds", "validation")


def add(folder: Path, row: str, seed: int, training: Mapping[str, Any]) -> None:
    """Keep the validations of a run in place of earlier ones of the same row and seed.

    Args:
        folder: of the board.
        row: name of the row.
        seed: of the run.
        training: its `training.json`.
    """
    monitor = training["monitor"]
    own = [
        dict(zip(HEADER, map(str, (row, seed, point["step"], point["seconds"], round(point[monitor], 2))), strict=True))
        for point in training["history"]["validation"]
    ]
    others = [line for line in _read(folder) if (line["row"], line["seed"]) != (row, str(seed))]
    write_csv(folder / CURVES, HEADER, [*others, *own])


def at_equal_time(folder: Path, rows: Collection[str]) -> str:
    """Say which validation each row has reached after the training time of the fastest run; "" without curves."""
    runs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in _read(folder):
        if line["row"] in rows:
            points = runs.setdefault(line["row"], {}).setdefault(line["seed"], [])
            points.append((float(line["seconds"]), float(line["validation"])))
    if len(runs) < 2:
        return ""
    time = min(points[-1][0] for seeds in runs.values() for points in seeds.values())
    reached = {
        row: [max((value for seconds, value in points if seconds <= time), default=None) for points in seeds.values()]
        for row, seeds in runs.items()
    }
    text = ", ".join(f"{row} {_mean(values)}" for row, values in reached.items())
    return f"Best validation until {time:.0f} s of training, the time of the fastest run: {text}.\n"


def _mean(values: list[float | None]) -> str:
    """Return the mean over seeds; a run without a validation until then leaves none."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.1f}" if len(known) == len(values) else "none yet"


def _read(folder: Path) -> list[dict[str, str]]:
    """Read the curves of a board; errors as `read_csv`."""
    return read_csv(folder / CURVES, HEADER, dict)
