"""The learning rate of each learned row of a comparison, chosen on held-out training classes by the same trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

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


def add(folder: Path, trial: Trial) -> None:
    """Keep a trial among those of a board, in place of an earlier one of the same row and rate."""
    others = [t for t in read(folder) if (t.row, t.rate) != (trial.row, trial.rate)]
    write_csv(folder / RATES, HEADER, map(asdict, [*others, trial]))


def best(trials: Sequence[Trial], row: str, rates: Sequence[str]) -> str | None:
    """Return the one of these rates that has the highest validation in trials of a row; None if none ended.

    Of equal ones it is the first, in whatever order the trials have ended.
    """
    ended = {trial.rate: float(trial.validation) for trial in trials if trial.row == row and trial.validation}
    return max((rate for rate in rates if rate in ended), key=ended.__getitem__, default=None)


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
