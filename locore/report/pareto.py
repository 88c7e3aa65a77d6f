"""Quality against cost: the Pareto front of a board's rows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from locore.report.pictures import plt, save
from locore.report.tables import columns, protocols

Costs = dict[str, dict[str, Any]]  # row -> ms and MB of a list, GFLOPs or None, bytes stored of an image
Point = tuple[float, float, str]  # cost, quality and name


def pareto_front(points: list[Point]) -> list[Point]:
    """Return the points that no other point beats in cost and quality, the cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def quality_and_cost(finished: dict[str, list[dict]], costs: Costs, protocol: str) -> list[Point]:
    """Return of each row the time of a list and the deciding metric of a protocol."""
    metric = columns(finished, protocol)[-1]
    return [
        (costs[name]["ms"], mean(run["protocols"][protocol]["reranked"][metric] for run in runs), name)
        for name, runs in finished.items()
    ]


def front_names(finished: dict[str, list[dict]], costs: Costs, protocol: str) -> set[str]:
    """Return the names of the rows on the Pareto front."""
    known = {name: runs for name, runs in finished.items() if name in costs}
    return {name for _, _, name in pareto_front(quality_and_cost(known, costs, protocol))}


def _apart(values: list[float], gap: float) -> list[float]:
    """Return places for labels so that none covers another, in the order of their values."""
    places, free = [0.0] * len(values), -float("inf")
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        places[i] = max(values[i], free)
        free = places[i] + gap
    return places


def pareto(path: Path, measured: dict[str, tuple[dict[str, list[dict]], Costs]]) -> None:
    """Draw the deciding metric of each benchmark's first protocol against the time of a list, with the Pareto front.

    Args:
        path: of the picture.
        measured: of each benchmark the metrics of its rows and their costs.
    """
    figure, axes = plt.subplots(
        1, len(measured), squeeze=False, figsize=(5.5 * len(measured), 4.6), layout="constrained"
    )
    for axis, (benchmark, (finished, costs)) in zip(axes[0], measured.items(), strict=True):
        protocol = protocols(finished)[0]
        metric = columns(finished, protocol)[-1]
        points = quality_and_cost(finished, costs, protocol)
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
