"""The table of a comparison, a row a re-ranker, as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def protocols(finished: dict[str, list[dict]]) -> list[str]:
    """Return the measured protocols, the first one first; one without a name if nothing was measured."""
    runs = next(iter(finished.values()), [])
    return list(runs[0]["protocols"]) if runs else [""]


def columns(finished: dict[str, list[dict]], protocol: str) -> list[str]:
    """Return the names of the shown metrics, the deciding one last."""
    return next(iter(finished.values()))[0]["protocols"][protocol]["shown"]


def rows(
    finished: dict[str, list[dict]],
    failed: dict[str, str],
    protocol: str,
    costs: dict[str, dict[str, Any]] | None = None,
    front: Collection[str] = (),
    reference: dict[str, dict[str, str]] | None = None,
    gains: dict[str, tuple[float, float]] | None = None,
) -> list[dict[str, str]]:
    """Return the table of a protocol as text: global, each row, oracle and chance; failed runs last.

    Args:
        finished: metrics of the runs of each row.
        failed: error of each failed run.
        protocol: name of the protocol.
        costs: of a list under each row, where they were measured.
        front: names of the rows on the Pareto front.
        reference: further columns of some rows, see `read_reference`.
        gains: of each row the interval of its gain in the deciding metric, in points.
    """

    def spread(values: list[float], digits: int = 1) -> str:
        deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{deviation}"

    def used(runs: list[dict], values: list[float], digits: int = 1) -> str:
        """Format time or memory, of different machines one by one."""
        if len({run["machine"] for run in runs}) > 1:
            return " / ".join(f"{value:.{digits}f}" for value in values)
        return spread(values, digits)

    table: list[dict[str, str]] = []
    metrics_shown = columns(finished, protocol) if finished else ["result"]
    measured = {name: [run["protocols"][protocol] for run in runs] for name, runs in finished.items()}
    every = [each for found in measured.values() for each in found]
    if every:
        table.append({"": "global", **{n: f"{every[0]['global'][n]:.1f}" for n in metrics_shown}})
    for name, runs in finished.items():
        found = measured[name]
        row = {"": name, "parameters": "", "start": runs[0].get("start", "")}
        if runs[0]["parameters"]:
            row["parameters"] = f"{runs[0]['parameters'] / 1e6:.2f} M"
        if runs[0].get("state_size") is not None:
            row["state a layer"] = f"{runs[0]['state_size']:,}"
        for n in metrics_shown:
            gain = mean(r["reranked"][n] - r["global"][n] for r in found)
            row[n] = f"{spread([r['reranked'][n] for r in found])} ({gain:+.1f})"
        main = metrics_shown[-1]
        if gains:
            row[f"95 % of its gain in {main}"] = "{:+.1f} to {:+.1f}".format(*gains[name])
        if "ensemble" in found[0]:
            for n in dict.fromkeys((metrics_shown[0], main)):
                row[f"ensemble {n}"] = spread([r["ensemble"][n] for r in found])
        if "gated" in found[0]:
            row[f"gated {main}"] = spread([r["gated"][main] for r in found])
            row["lists re-ranked, %"] = spread([r["gate_opens"] for r in found], 0)
        cost = (costs or {}).get(name, {})
        if described := cost.get("stored") or runs[0].get("descriptor_bytes"):
            row["bytes an image"] = f"{described:,}"
        if all("training" in r["seconds"] for r in runs):
            row["training s"] = used(runs, [r["seconds"]["training"] for r in runs], 0)
        if costs:
            if not cost:
                table.append(row)
                continue
            row["GFLOPs a list"] = f"{cost['gflops']:.1f}" if cost["gflops"] else ""
            row["ms a list"], row["MB"] = f"{cost['ms']:.1f}", f"{cost['mb']}"
            row["front"] = "yes" if name in front else ""
        else:
            row["ms a list"] = used(runs, [r["latency_ms"] for r in runs])
            row["peak MB"] = used(runs, [r["peak_memory_mb"] for r in runs], 0)
        table.append(row)
    if every:
        table.append({"": "oracle", **{n: f"{every[0]['oracle'][n]:.1f}" for n in metrics_shown}})
    chance = next((each["chance"] for each in every if "chance" in each), None)  # earlier runs have none
    if chance:
        table.append({"": "chance", **{n: f"{chance[n]:.1f}" for n in metrics_shown}})
    reference = reference or {}
    beside = dict.fromkeys((column for values in reference.values() for column in values), "")
    for row in table:
        row |= beside | reference.get(row[""], {})
    table += [{"": name, metrics_shown[0]: f"failed: {why}"} for name, why in failed.items()]
    return table


def read_reference(path: Path, table: str) -> dict[str, dict[str, str]]:
    """Read the numbers of a paper that stand beside the rows of a table, by row.

    Args:
        path: CSV file with the columns `table`, `row` and others.
        table: whose lines are read.

    Raises:
        ValueError: the file is missing, or has no columns `table` and `row`.
    """
    try:
        with open(path, newline="") as file:
            lines = list(csv.DictReader(file, restval=""))
        return {
            line["row"]: {name: value for name, value in line.items() if name not in ("table", "row")}
            for line in lines
            if line["table"] == table
        }
    except (OSError, csv.Error, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"'{path}' cannot be read as a CSV file with columns table and row ({error}).") from error


def _header(table: list[dict[str, str]]) -> list[str]:
    """Return every column of the table: those of its longest row, and others after the one that they follow."""
    longest = max(table, key=len, default={"": ""})
    header = list(longest)
    for row in table:
        for before, name in pairwise(row):
            if name not in header:
                header.insert(header.index(before) + 1, name)
    return header


def markdown(table: list[dict[str, str]]) -> str:
    """Return the table in Markdown."""
    header = _header(table)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row.get(column, "") for column in header) + " |" for row in table]
    return "\n".join(lines) + "\n"


def latex(table: list[dict[str, str]]) -> str:
    """Return the table as a LaTeX tabular."""
    header = _header(table)

    def line(cells: list[str]) -> str:
        return " & ".join(_escaped(cell) for cell in cells) + r" \\"

    rows = [line([row.get(column, "") for column in header]) for row in table]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", line(header), r"\hline", *rows, r"\hline", r"\end{tabular}"]
    )


def _escaped(text: str) -> str:
    for sign in "&%_#":
        text = text.replace(sign, rf"\{sign}")
    return text.replace("±", r"$\pm$")


def made(finished: dict[str, list[dict]], command: str, costs: dict[str, Any] | None = None) -> str:
    """Return what was measured and how the tables were made.

    Args:
        finished: metrics of the runs of each row.
        command: that made the tables.
        costs: of a list under each row, with machine and commit, where they were measured.
    """
    note = "Re-ranking in batches; memory of the whole process."
    if costs:
        one_cost = next(iter(costs.values()))
        note = (
            f"Costs of one list of random descriptors, all rows in turn (machine: {one_cost['machine']}; commit "
            f"{one_cost['commit']}); bytes an image as experiments.extract writes them: the global descriptor, and of "
            "a row that reads them the local descriptors in half precision; front: no other row is as cheap and better."
        )
    one = next(iter(finished.values()))[0]
    asked = ", ".join(f"{measured['queries']} ({name})" for name, measured in one["protocols"].items())
    return (
        f"Re-ranked: the first {one['candidates']} candidates of each query of `{one['benchmark']}`, {asked}; mean ± "
        "deviation over seeds, in brackets the difference to global; intervals by a bootstrap over classes and seeds, "
        "where a row with one seed tells nothing of seeds. Oracle: a perfect order of the same shortlist; chance: the "
        "mean of random ones. "
        f"Training with its validations. {note}\n\n"
        f"Command: `{command}`. Machine: {_machines(finished)}. "
        f"Commits: {', '.join(sorted({r['commit'] for runs in finished.values() for r in runs}))}.\n"
    )


def _machines(finished: dict[str, list[dict]]) -> str:
    """Return the machine of all runs, or each with its rows: seconds of different machines do not compare."""
    rows: dict[str, list[str]] = {}
    for name, runs in finished.items():
        for machine in sorted({run["machine"] for run in runs}):
            rows.setdefault(machine, []).append(name)
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{machine} ({', '.join(names)})" for machine, names in rows.items())


def csv_text(tables: dict[str, list[dict]]) -> str:
    """Return the tables of all protocols as comma-separated values."""
    text = io.StringIO()
    together = [{"protocol": protocol, **row} for protocol, table in tables.items() for row in table]
    writer = csv.DictWriter(text, _header(together), restval="")
    writer.writeheader()
    writer.writerows(together)
    return text.getvalue()
