"""The learning rate of each learned row of a comparison, chosen on held-out training classes by the same trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from locore.pipeline.train import TRAINING
from locore.utils.files import read_csv, write_csv

RATES = "rates.csv"


@dataclass(frozen=True)
class Trial:
    """A short training of a row at one learning rate.

    Attributes:
        row: name of the row.
        rate: learning rate.
        seed: of the training.
        steps: of the training.
        config: hash of the configuration of the row, before its rate is chosen.
        validation: the highest value of the monitored metric; "" = the training failed.
    """

    row: str
    rate: str
    seed: int
    steps: int
    config: str
    validation: str


HEADER = [field.name for field in fields(Trial)]


def read(folder: Path) -> list[Trial]:
    """Read the trials of a board; without a file there are none.

    Raises:
        ValueError: the file is damaged.
    """

    def parse(line: dict[str, str]) -> Trial:
        return Trial(**{**line, "seed": int(line["seed"]), "steps": int(line["steps"])})  # type: ignore[arg-type]

    return read_csv(folder / RATES, HEADER, parse)


def choose(
    folder: Path,
    row: str,
    config: str,
    seed: int,
    steps: int,
    rates: Sequence[str],
    train: Callable[[str], Path | None],
) -> str:
    """Return the rate with the highest validation, after trials of those that have none yet.

    Args:
        folder: of the board, where the trials are kept.
        row: name of the row.
        config: hash of its configuration.
        seed: of the trials.
        steps: of a trial.
        rates: as they are written in a gin file.
        train: given a rate, runs a trial; returns its folder, None if the training failed.

    Raises:
        ValueError: no rate trains this row.
    """
    trials = read(folder)
    for rate in rates:
        if any((t.row, t.rate, t.config, t.steps) == (row, rate, config, steps) for t in trials):
            continue
        made = train(rate)
        best = f"{json.loads((made / TRAINING).read_text())['best']:.2f}" if made else ""
        others = [t for t in trials if (t.row, t.rate) != (row, rate)]
        trials = [*others, Trial(row, rate, seed, steps, config, best)]
        write_csv(folder / RATES, HEADER, map(asdict, trials))
    ended = [t for t in trials if t.row == row and t.rate in rates and t.validation]
    if not ended:
        raise ValueError(f"No trial of '{row}' ended; see the messages above.")
    return max(ended, key=lambda trial: float(trial.validation)).rate


def described(trials: Sequence[Trial]) -> str:
    """Return how the rates were chosen, for a table's page."""
    rows: dict[str, list[Trial]] = {}
    for trial in trials:
        rows.setdefault(trial.row, []).append(trial)
    lines = ["Learning rates, by the validation of short trainings with one seed (the highest is taken):", ""]
    for row, own in rows.items():
        values = ", ".join(f"{trial.rate}: {trial.validation or 'failed'}" for trial in own)
        lines.append(f"- {row}, {own[0].steps} steps: {values}")
    return "\n".join(lines) + "\n"
