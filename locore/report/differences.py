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
    """Compare each row with each other, the mean over its seeds, with 95 % intervals by class.

    Args:
        finished: runs of each row.
        shown: names of the metrics.
        protocol: under which they are compared.
        every_pair: False = the first row with each other one.

    Returns:
        For each pair "first", "second" and, of each metric, first less second in points as text.
    """
    values = {
        row: {m: np.mean([run.queries[protocol][m] for run in runs], axis=0) for m in shown}
        for row, runs in finished.items()
    }
    groups = next(iter(finished.values()))[0].queries[protocol]["class"]
    found = []
    pairs = list(combinations(values, 2))
    for one, other in pairs if every_pair else pairs[: len(values) - 1]:
        pair = {"first": one, "second": other}
        for m in shown:
            difference = 100 * (values[one][m] - values[other][m])
            low, high = interval(difference, groups)
            pair[m] = f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        found.append(pair)
    return found


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
        "Differences in points with 95 % intervals (bootstrap over classes; those of all pairs by --differences):\n\n"
        + markdown(table)
    )
