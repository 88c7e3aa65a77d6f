"""Differences of any two rows of a board on the same queries, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from locore.metrics.bootstrap import interval
from locore.report.results import BoardRun
from locore.report.tables import markdown


def differences(
    finished: Mapping[str, list[BoardRun]], shown: list[str], protocol: str, every_pair: bool = True
) -> list[dict[str, str]]:
    """Compare each row with each other, the mean over its seeds, with 95 % intervals over classes and seeds.

    Args:
        finished: runs of each row.
        shown: names of the metrics.
        protocol: under which they are compared.
        every_pair: False = the first row with each other one.

    Returns:
        For each pair "first", "second" and, of each metric, first less second in points as text.
    """
    groups = next(iter(finished.values()))[0].queries[protocol]["class"]
    found = []
    pairs = list(combinations(finished, 2))
    for one, other in pairs if every_pair else pairs[: len(finished) - 1]:
        pair = {"first": one, "second": other}
        for m in shown:
            ours, theirs = (_of_runs(finished[row], protocol, m) for row in (one, other))
            low, high = interval(ours, groups, theirs)
            pair[m] = f"{ours.mean() - theirs.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        found.append(pair)
    return found


def gains(finished: Mapping[str, list[BoardRun]], metric: str, protocol: str) -> dict[str, tuple[float, float]]:
    """Return for each row the 95 % interval of what it gains in a metric over the search, in points."""
    found = {}
    for row, runs in finished.items():
        gain = _of_runs(runs, protocol, metric) - _of_runs(runs, protocol, f"global {metric}")
        found[row] = interval(gain, runs[0].queries[protocol]["class"])
    return found


def not_separated(finished: Mapping[str, list[BoardRun]], metric: str, protocol: str) -> str:
    """Name the pairs of rows whose difference in a metric has an interval with zero in it."""
    groups = next(iter(finished.values()))[0].queries[protocol]["class"]
    like: dict[str, list[str]] = {}
    for one, other in combinations(finished, 2):
        low, high = interval(
            _of_runs(finished[one], protocol, metric), groups, _of_runs(finished[other], protocol, metric)
        )
        if low <= 0 <= high:
            like.setdefault(one, []).append(other)
    pairs = "; ".join(f"{one} from {', '.join(others)}" for one, others in like.items())
    return f"Not separated in {metric} by these intervals: {pairs}.\n" if pairs else ""


def _of_runs(runs: list[BoardRun], protocol: str, metric: str) -> np.ndarray:
    """Return a metric (S, Q) of each query in percent, a line a run."""
    return 100 * np.stack([run.queries[protocol][metric] for run in runs])


def of_the_first(pairs: list[dict[str, str]]) -> str:
    """Return the differences of the first row to all others in Markdown."""
    if not pairs:
        return ""
    first = pairs[0]["first"]
    table = [
        {f"{first} less": pair["second"], **{n: v for n, v in pair.items() if n not in ("first", "second")}}
        for pair in pairs
        if pair["first"] == first
    ]
    return (
        "Differences in points with 95 % intervals (bootstrap over classes and seeds; those of all pairs by "
        "--differences):\n\n" + markdown(table)
    )
