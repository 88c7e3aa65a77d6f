"""What re-rankers cost side by side: each in a process of its own, a list of random descriptors in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from experiments._profiling.side import Side, in_turn
from locore.pipeline.build import descriptor_widths
from locore.pipeline.settings import Experiment, plan
from locore.utils.provenance import commit, machine

WARM_UP, PASSES = 2, 7


def side_by_side(rows: Mapping[str, tuple[Sequence[str], Sequence[str], Experiment]]) -> dict[str, dict[str, Any]]:
    """Measure rows, all of their processes alive at once.

    Args:
        rows: by name, gin files, lines that win over them, and the experiment that they make.

    Returns:
        Of each row the median "ms" of a list, the "mb" that a pass takes, "gflops" (None without weights), "stored",
        the bytes of an image that it reads, and "machine" and "commit".

    Raises:
        ValueError: a row cannot be measured.
    """
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                Side(
                    side="reranker",
                    gin=list(files),
                    set=list(lines),
                    widths=descriptor_widths(experiment),
                    layout=(plan(experiment).layout.block, 1 + plan(experiment).depth),
                    batch=1,
                    whole=True,
                    precision=None,
                    one_by_one=False,
                    backward=False,
                    allocator=True,
                )
            )
            for name, (files, lines, experiment) in rows.items()
        }
        in_turn(list(sides.values()), WARM_UP, PASSES)
        found = {}
        for name, side in sides.items():
            closed = side.close()
            found[name] = {
                "ms": round(1000 * median(side.seconds), 2),
                "mb": closed["mb"],
                "gflops": closed["flops"] and closed["flops"] / 1e9,
                "stored": closed["stored"],
                "machine": machine(),
                "commit": commit(),
            }
    return found
