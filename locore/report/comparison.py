"""The table of a comparison: a row a re-ranker, differences between any two with their intervals, and pictures."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from locore.evaluation import interval
from locore.report.pictures import plt, save

Costs = dict[str, dict[str, Any]]  # row -> ms and MB of a list, GFLOPs or None, bytes stored of an image


def protocols(finished: dict[str, list[dict]]) -> list[str]:
    """The protocols that were measured, the first one first; where nothing was, one without a name."""
    runs = next(iter(finished.values()), [])
    return list(runs[0]["protocols"]) if runs else [""]


def columns(finished: dict[str, list[dict]], protocol: str) -> list[str]:
    """The metrics that are shown, the one that decides last."""
    return next(iter(finished.values()))[0]["protocols"][protocol]["shown"]


def rows(
    finished: dict[str, list[dict]],
    failed: dict[str, str],
    protocol: str,
    costs: Costs | None = None,
    published: dict[str, dict[str, str]] | None = None,
) -> list[dict[str, str]]:
    """The table of a protocol as text: global, each row, the oracle; failed runs last.

    Args:
        costs: of each row, where they were measured side by side.
        published: of some rows further columns, see `read_published`.
    """

    def spread(values: list[float], digits: int = 1) -> str:
        deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{deviation}"

    def used(runs: list[dict], values: list[float], digits: int = 1) -> str:
        """Time or memory: of different machines each by itself."""
        if len({run["machine"] for run in runs}) > 1:
            return " / ".join(f"{value:.{digits}f}" for value in values)
        return spread(values, digits)

    table: list[dict[str, str]] = []
    metrics_shown = columns(finished, protocol) if finished else ["result"]
    measured = {name: [run["protocols"][protocol] for run in runs] for name, runs in finished.items()}
    every = [each for found in measured.values() for each in found]
    front = {name for _, _, name in pareto_front(_points(finished, costs, protocol))} if costs else set()
    if every:
        table.append({"": "global", **{n: f"{every[0]['global'][n]:.1f}" for n in metrics_shown}})
    for name, runs in finished.items():
        found = measured[name]
        row = {"": name, "parameters": f"{runs[0]['parameters'] / 1e6:.2f} M" if runs[0]["parameters"] else ""}
        for n in metrics_shown:
            gain = mean(r["reranked"][n] - r["global"][n] for r in found)
            row[n] = f"{spread([r['reranked'][n] for r in found])} ({gain:+.1f})"
        main = metrics_shown[-1]
        if "ensemble" in found[0]:
            row[f"ensemble {main}"] = spread([r["ensemble"][main] for r in found])
        if all("training" in r["seconds"] for r in runs):
            row["training s"] = used(runs, [r["seconds"]["training"] for r in runs], 0)
        if costs:
            cost = costs[name]
            row["GFLOPs a list"] = f"{cost['gflops']:.1f}" if cost["gflops"] else ""
            row["ms a list"], row["MB"] = f"{cost['ms']:.1f}", f"{cost['mb']}"
            row["bytes an image"] = f"{cost['stored']:,}"
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
    published = published or {}
    beside = dict.fromkeys((column for values in published.values() for column in values), "")
    for row in table:
        row |= beside | published.get(row[""], {})
    table += [{"": name, metrics_shown[0]: f"failed: {why}"} for name, why in failed.items()]
    return table


def read_published(path: Path, table: str) -> dict[str, dict[str, str]]:
    """The columns of a CSV file that stand beside the rows of a table, by row.

    Raises:
        ValueError: it is missing, or has no columns `table` and `row`.
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
    """Every column of the table, in the order of its longest row."""
    longest = max(table, key=len, default={"": ""})
    return list(longest)


def markdown(table: list[dict[str, str]]) -> str:
    """The table in Markdown."""
    header = _header(table)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row.get(column, "") for column in header) + " |" for row in table]
    return "\n".join(lines) + "\n"


def latex(table: list[dict[str, str]]) -> str:
    """The table as a LaTeX tabular."""
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
    """What was measured, and how the tables were made.

    Args:
        costs: with their machine and commit, where they were measured side by side.
    """
    told = "Re-ranking in batches; memory of the whole process."
    if costs:
        told = (
            "Costs of one list of random descriptors, all rows in turn (machine: "
            f"{costs['machine']}; commit {costs['commit']}); bytes an image as experiments.extract writes them: the "
            "global descriptor, and of a row that reads them the locals in half precision; front: no other row is as "
            "cheap and better."
        )
    one = next(iter(finished.values()))[0]
    asked = ", ".join(f"{measured['queries']} ({name})" for name, measured in one["protocols"].items())
    return (
        f"Re-ranked: the first {one['candidates']} candidates of each query of `{one['benchmark']}`, {asked}; mean ± "
        "deviation over seeds, in brackets the difference to global. Oracle: a perfect order of the same shortlist; "
        "chance: the mean of random ones. "
        f"Training with its validations. {told}\n\n"
        f"Command: `{command}`. Machine: {_machines(finished)}. "
        f"Commits: {', '.join(sorted({r['commit'] for runs in finished.values() for r in runs}))}.\n"
    )


def _machines(finished: dict[str, list[dict]]) -> str:
    """The machine of all runs, or each one with its rows: seconds of different ones do not compare."""
    rows: dict[str, list[str]] = {}
    for name, runs in finished.items():
        for machine in sorted({run["machine"] for run in runs}):
            rows.setdefault(machine, []).append(name)
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{machine} ({', '.join(names)})" for machine, names in rows.items())


def differences(per_query: dict[str, list[list[dict[str, str]]]], shown: list[str], protocol: str) -> list[dict]:
    """Each row against each other on the same queries, the mean over its seeds, with 95 % intervals by class.

    Args:
        per_query: for each row and seed the rows of `queries.csv`, of which those of the protocol are used.

    Returns:
        for each pair the names and, of each metric, first less second as text.
    """
    per_query = {
        name: [[row for row in run if row["protocol"] == protocol] for run in runs] for name, runs in per_query.items()
    }
    values = {
        name: {m: np.mean([[float(row[f"reranked {m}"]) for row in run] for run in runs], axis=0) for m in shown}
        for name, runs in per_query.items()
    }
    groups = np.array([row["class"] for row in next(iter(per_query.values()))[0]])
    found = []
    for one, other in combinations(values, 2):
        pair = {"first": one, "second": other}
        for m in shown:
            difference = 100 * (values[one][m] - values[other][m])
            low, high = interval(difference, groups)
            pair[m] = f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        found.append(pair)
    return found


def of_the_first(pairs: list[dict], rest: str) -> str:
    """The differences of the first row in Markdown.

    Args:
        pairs: of `differences`. rest: where those of the others are.
    """
    if not pairs:
        return ""
    first = pairs[0]["first"]
    table = [
        {f"{first} less": pair["second"], **{n: v for n, v in pair.items() if n not in ("first", "second")}}
        for pair in pairs
        if pair["first"] == first
    ]
    return f"Differences with 95 % intervals (bootstrap over classes); all others are in {rest}:\n\n{markdown(table)}"


def csv_text(tables: dict[str, list[dict]]) -> str:
    """The tables of all protocols as comma-separated values."""
    text = io.StringIO()
    together = [{"protocol": protocol, **row} for protocol, table in tables.items() for row in table]
    writer = csv.DictWriter(text, _header(together), restval="")
    writer.writeheader()
    writer.writerows(together)
    return text.getvalue()


def picture(path: Path, finished: dict[str, list[dict]]) -> None:
    """A panel a metric, or where there are several protocols a panel for what decides in each: a bar from global to the
    mean, every seed a dot, global and oracle as lines."""
    known = protocols(finished)
    first = known[0]
    shown = (
        [(first, metric) for metric in columns(finished, first)]
        if len(known) == 1
        else [(protocol, columns(finished, protocol)[-1]) for protocol in known]
    )
    figure, axes = plt.subplots(
        1, len(shown), squeeze=False, figsize=(12, 0.5 * len(finished) + 1.8), layout="constrained"
    )
    axes, names = axes[0], list(finished)
    for axis, (protocol, metric) in zip(axes, shown, strict=True):
        one = finished[names[0]][0]["protocols"][protocol]
        title = f"{metric}, %" if len(known) == 1 else f"{protocol}: {metric}, %"
        values = [[r["protocols"][protocol]["reranked"][metric] for r in finished[name]] for name in names]
        start = one["global"][metric]
        axis.barh(names, [mean(v) - start for v in values], left=start, color="#c6dbef")
        for place, dots in enumerate(values):
            axis.plot(dots, [place] * len(dots), "o", color="#08519c", markersize=5)
        for reference, style in (("global", "--"), ("oracle", ":")):
            axis.axvline(one[reference][metric], linestyle=style, color="0.3", label=reference)
        everything = [x for v in values for x in v] + [one["global"][metric], one["oracle"][metric]]
        margin = 0.1 * (max(everything) - min(everything)) + 0.1
        axis.set(xlim=(min(everything) - margin, max(everything) + margin), title=title)
        axis.set_ylim(len(names) - 0.4, -0.6)  # the first row on top
        if axis is not axes[0]:
            axis.set_yticklabels([])
    axes[-1].legend(loc="lower right")
    save(figure, path)


Point = tuple[float, float, str]  # cost, quality and name


def pareto_front(points: list[Point]) -> list[Point]:
    """Those than which no other is both at most as dear and better, or cheaper and as good, the cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _points(finished: dict[str, list[dict]], costs: Costs, protocol: str) -> list[Point]:
    """Time of a list, and what decides in a protocol, of each row."""
    metric = columns(finished, protocol)[-1]
    return [
        (costs[name]["ms"], mean(run["protocols"][protocol]["reranked"][metric] for run in runs), name)
        for name, runs in finished.items()
    ]


def _apart(values: list[float], gap: float) -> list[float]:
    """Where labels of values stand so that none covers another: in their order, the lowest as low as it is."""
    places, free = [0.0] * len(values), -float("inf")
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        places[i] = max(values[i], free)
        free = places[i] + gap
    return places


def pareto(path: Path, measured: dict[str, tuple[dict[str, list[dict]], Costs]]) -> None:
    """A panel a benchmark: what decides in its first protocol against the time of a list, with the Pareto front.

    Args:
        measured: of each benchmark the metrics of its rows and their costs.
    """
    figure, axes = plt.subplots(
        1, len(measured), squeeze=False, figsize=(5.5 * len(measured), 4.6), layout="constrained"
    )
    for axis, (benchmark, (finished, costs)) in zip(axes[0], measured.items(), strict=True):
        protocol = protocols(finished)[0]
        metric = columns(finished, protocol)[-1]
        points = _points(finished, costs, protocol)
        front = pareto_front(points)
        axis.step(*zip(*[p[:2] for p in front], strict=True), where="post", color="#fdae6b", zorder=1)
        low, high = min(p[1] for p in points), max(p[1] for p in points)
        places = _apart([p[1] for p in points], max(high - low, 1) / 22)
        for (ms, quality, name), place in zip(points, places, strict=True):
            learned = finished[name][0]["parameters"] > 0
            axis.plot(ms, quality, "o" if learned else "s", color="#08519c" if learned else "0.45", markersize=6)
            axis.annotate(
                name,
                (ms, quality),
                xytext=(1.02, place),
                textcoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
                fontweight="bold" if (ms, quality, name) in front else "normal",
                arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.6},
                parse_math=False,
            )
        one = next(iter(finished.values()))[0]["protocols"][protocol]
        axis.axhline(one["global"][metric], linestyle="--", color="0.3", linewidth=1, label="global, not re-ranked")
        for marker, color, label in (("o", "#08519c", "learned"), ("s", "0.45", "not trained")):
            axis.plot([], [], marker, color=color, label=label)
        axis.set(xscale="log", xlabel="ms a list", ylabel=f"{metric}, %", title=f"{benchmark}, {protocol}")
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path)
