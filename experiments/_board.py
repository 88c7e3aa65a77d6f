"""The rows of a board: what is run for each of them, at which learning rate, and what the results folder keeps."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import _config as config
from experiments import _rates as rates
from experiments._jobs import Job, run_jobs
from locore.pipeline import build, settings
from locore.pipeline.train import TRAINING
from locore.report import curves
from locore.report.results import BoardResults
from locore.reranking import weights_file

TRIAL = 0.25  # share of its steps for which a row is trained at each of the rates
FINAL = "-final"  # end of the name of a folder
FINAL_NOTE = (
    "**Final measurement** of queries that were not looked at before, by rows that were finished then. Nothing may be "
    "chosen by these numbers.\n"
)


@dataclass(frozen=True)
class Row:
    """A row of a table with one seed: its gin files and lines, what they make, and the hash of the configuration."""

    files: list[str]
    lines: list[str]
    experiment: Any
    config: str


@dataclass
class Board:
    """Rows that re-rank the same shortlists.

    Attributes:
        results: what its folder has.
        mixed: gin files that are mixed into every row.
        rows: by name and seed; empty with --finished.
        failed: error of each run that failed.
    """

    results: BoardResults
    mixed: list[str]
    rows: dict[tuple[str, int], Row]
    failed: dict[str, str]

    @property
    def note(self) -> str:
        """What stands above its tables."""
        return FINAL_NOTE if self.results.folder.name.endswith(FINAL) else ""


def row_name(row: str) -> str:
    """Return the name of a row: the names of its gin files, or of a run folder."""
    if _is_run(row):
        return Path(row).resolve().name
    return "+".join(Path(file).stem if file.endswith(".gin") else file for file in row.split("+"))


def planned(options: argparse.Namespace, mixed: list[str], folder: Path | None) -> Board:
    """Read the rows of a board.

    Raises:
        ValueError: a configuration is wrong, two rows re-rank different shortlists, or the final measurement would ask
            the same queries.
    """
    rows: dict[tuple[str, int], Row] = {}
    for given in options.rows:
        own, of_a_run = _files_and_lines(given, mixed)
        for seed in options.seeds:
            row = _read(own, [*options.set, *of_a_run], seed)
            if row.experiment.trains or seed == options.seeds[0]:
                rows[row_name(given), seed] = row
    (first_name, _), first = next(iter(rows.items()))
    wanted = build.shortlist_settings(first.experiment)
    for (name, seed), row in rows.items():
        ours = build.shortlist_settings(row.experiment)
        for what in ours | wanted:
            one, other = ours.get(what), wanted.get(what)
            if one != other:
                raise ValueError(
                    f"'{name}' and '{first_name}' differ in {what}: {one} and {other}; rows of one table re-rank the "
                    "same shortlists."
                )
        if options.final and _read([*row.files, options.final], row.lines, seed).experiment.data == row.experiment.data:
            raise ValueError(f"'{options.final}' changes nothing of the data of '{name}', which is looked at before.")
    folder = folder or Path("results") / first.experiment.data.benchmark
    return Board(BoardResults.read(folder), mixed, rows, {})


def finished_board(options: argparse.Namespace, mixed: list[str], folder: Path | None) -> Board:
    """Read what the results folder of a board has."""
    if folder is None:
        raise ValueError("--finished needs --results, the folder of a board, or --on with boards.")
    results = BoardResults.read(folder)
    names = [row_name(row) for row in options.rows]
    for name in names:
        if not results.finished([name]):
            print(f"{name}: left out, '{folder}' has no run of it.", file=sys.stderr)
    if not results.finished(names or None):
        raise ValueError(f"'{folder}' has no run of these rows; leave --finished out to run them.")
    return Board(results, mixed, {}, {})


def run_all(board: Board, options: argparse.Namespace) -> None:
    """Run what the results folder does not have, and add it there."""
    if options.rates:
        _choose_rates(board, options)
    known = board.results.runs
    missing = [key for key, row in board.rows.items() if key not in known or known[key].config != row.config]
    missing = [key for key in missing if _said(*key) not in board.failed]
    folders = [_folder(options, name, seed, board.rows[name, seed]) for name, seed in missing]
    jobs = [_job(*key, board.rows[key], folder) for key, folder in zip(missing, folders, strict=True)]
    for place, failure in run_jobs(jobs, options.jobs):
        (name, seed), folder = missing[place], folders[place]
        if failure:
            board.failed[_said(name, seed)] = failure
            continue
        metrics = json.loads((folder / "metrics.json").read_text())
        board.results.add(name, board.rows[name, seed].config, metrics, (folder / "queries.csv").read_text())
        if (folder / TRAINING).exists():  # what is not trained, or was by an earlier version, has none
            curves.add(board.results.folder, name, seed, json.loads((folder / TRAINING).read_text()))


def _choose_rates(board: Board, options: argparse.Namespace) -> None:
    """Give each learned row the learning rate that short trainings choose; finished ones are not repeated."""
    first, folder = options.seeds[0], board.results.folder
    learned = {name: row for (name, seed), row in board.rows.items() if seed == first and row.experiment.trains}
    for name, row in learned.items():
        if row.experiment.training.epochs is not None:
            raise ValueError(f"--rates shortens Training.steps; leave Training.epochs of '{name}' out.")
    steps = {name: max(1, round(TRIAL * row.experiment.training.steps)) for name, row in learned.items()}
    tried = {(t.row, t.rate, t.config, t.steps) for t in rates.read(folder)}
    missing, jobs = [], []
    for name, row in learned.items():
        for rate in options.rates:
            if (name, rate, row.config, steps[name]) in tried:
                continue
            lines = [f"Training.learning_rate = {rate}", f"Training.steps = {steps[name]}"]
            trial = _read(row.files, [*row.lines, *lines], first)
            made = _folder(options, f"{name}-rate{rate}", first, trial)
            job = _job(f"{name} at {rate}", first, trial, made)
            missing.append((name, rate, made))
            jobs.append(replace(job, command=[*job.command, "--train-only"]))
    for place, failure in run_jobs(jobs, options.jobs):
        name, rate, made = missing[place]
        best = "" if failure else f"{json.loads((made / TRAINING).read_text())['best']:.2f}"
        rates.add(folder, rates.Trial(name, rate, first, steps[name], learned[name].config, best))
    trials = rates.read(folder)
    for (name, seed), row in list(board.rows.items()):
        if name not in learned:
            continue
        if rate := rates.best(trials, name, options.rates):
            board.rows[name, seed] = _read(row.files, [*row.lines, f"Training.learning_rate = {rate}"], seed)
        else:
            board.failed[_said(name, seed)] = f"No trial of '{name}' ended; see the messages above."


def final_board(board: Board, options: argparse.Namespace) -> Board | None:
    """Measure the finished rows of a board on queries that were not looked at; None if a row has failed.

    Raises:
        ValueError: other rows were measured there before, or a run folder is gone.
    """
    if board.failed:
        print("Not all rows are finished, so the final measurement waits.", file=sys.stderr)
        return None
    folder = board.results.folder.with_name(board.results.folder.name + FINAL)
    final = Board(BoardResults.read(folder), [*board.mixed, options.final], {}, {})
    for (name, seed), row in board.rows.items():
        files, lines = [*row.files, options.final], row.lines
        if row.experiment.trains:
            trained = _folder(options, name, seed, row)
            if not (trained / "metrics.json").is_file():
                raise ValueError(
                    f"The final measurement needs the run folder '{trained}', which is gone; run the row again."
                )
            files, lines = _files_and_lines(str(trained), final.mixed)
            lines = [*options.set, *lines]
            metrics = json.loads((trained / "metrics.json").read_text())
            if metrics["alpha"] is not None:  # chosen on validation, as the weights were
                shares = [f"Reranking.{part} = {metrics[part]}" for part in ("alpha", "temperature")]
                lines = [*lines, "Reranking.ensemble = True", *shares]
            if metrics["gate"] is not None:
                lines = [*lines, f"Reranking.gate = {metrics['gate']}"]
        final.rows[name, seed] = _read(files, lines, seed)
    for key, run in final.results.runs.items():
        if key not in final.rows or final.rows[key].config != run.config:
            raise ValueError(
                f"'{folder}' has a final measurement of other rows ({key[0]}, seed {key[1]}), and it is made once. "
                "Take a part of the data that was not looked at yet."
            )
    run_all(final, argparse.Namespace(**{**vars(options), "rates": []}))
    return final


def _read(files: list[str], lines: list[str], seed: int) -> Row:
    experiment, text = config.read_experiment(files, lines, seed)
    return Row(files, lines, experiment, _hash(text))


def _hash(text: str) -> str:
    """Return the hash of a configuration: of its seed, weights and settings that differ from the defaults."""
    return hashlib.sha256("\n".join(config.identifying_lines(text)).encode()).hexdigest()[:12]


def _files_and_lines(row: str, mixed: list[str]) -> tuple[list[str], list[str]]:
    """Return the gin files of a row, and the lines that make a run folder one."""
    if not _is_run(row):
        return [*row.split("+"), *mixed], []
    if not mixed:
        raise ValueError(f"'{row}' is a run folder; say by --on or --gin on which data it is evaluated.")
    spec = weights_file.read(Path(row) / weights_file.WEIGHTS).spec or {}
    method = spec.get("method", settings.LISTWISE)
    # The images that would choose an ensemble may be those that it was trained on.
    alone = "Reranking.ensemble = False"
    return mixed, [f"Model.method = '{method}'", f"Model.checkpoint = '{Path(row).resolve()}'", alone]


def _is_run(row: str) -> bool:
    return (Path(row) / weights_file.WEIGHTS).is_file()


def _folder(options: argparse.Namespace, name: str, seed: int, row: Row) -> Path:
    return options.runs / f"{name}-seed{seed}-{row.config[:8]}"


def _said(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def _job(name: str, seed: int, row: Row, folder: Path) -> Job:
    command = [sys.executable, "-m", "experiments.run", "--seed", str(seed), "--out", str(folder)]
    command += [part for file in row.files for part in ("--gin", file)]
    command += [part for line in row.lines for part in ("--set", line)]
    return Job(_said(name, seed), command, folder.with_name(f"{folder.name}.log"))
