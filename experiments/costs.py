"""What re-rankers cost beside each other: each in a process of its own, a list of random descriptors in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from experiments.experiment import Experiment
from experiments.measure import Side, in_turn
from experiments.provenance import commit, machine

WARM_UP, PASSES = 2, 7


def side_by_side(rows: Mapping[str, tuple[Sequence[str], Experiment]], overrides: Sequence[str]) -> dict[str, Any]:
    """Measure rows; all of their processes are alive at once.

    Args:
        rows: by name, gin files and what they make. overrides: gin lines behind them.

    Returns:
        "rows", of each "ms" of a list (median), "mb" that a pass takes, "gflops" of what has weights, and "stored",
        bytes of an image that it reads; "machine" and "commit".

    Raises:
        ValueError: a row cannot be measured.
    """
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                Side(
                    side="reranker",
                    gin=list(files),
                    set=list(overrides),
                    widths=experiment.widths,
                    layout=(experiment.layout.block, 1 + experiment.depth),
                    batch=1,
                    whole=True,
                    one_by_one=False,
                    backward=False,
                    allocator=True,
                )
            )
            for name, (files, experiment) in rows.items()
        }
        in_turn(list(sides.values()), WARM_UP, PASSES)
        found = {}
        for name, side in sides.items():
            said = side.close()
            found[name] = {
                "ms": round(1000 * median(side.seconds), 2),
                "mb": said["mb"],
                "gflops": said["flops"] and said["flops"] / 1e9,
                "stored": said["stored"],
            }
    return {"rows": found, "machine": machine(), "commit": commit()}
