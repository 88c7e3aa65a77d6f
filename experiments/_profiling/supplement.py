"""The performance table of the paper's supplement: what 100 candidates cost under each re-ranker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from locore.report.tables import markdown
from locore.utils.provenance import commit, machine


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        gin: its gin files.
        lines: settings that win over them.
        measured: options of `experiments.profile` that differ from its defaults.
    """

    gin: Sequence[str]
    lines: Sequence[str] = ()
    measured: tuple[tuple[str, Any], ...] = ()


# CVNet reads maps of 32 × 32 cells, of images of 512 × 512, a pair at a time.
MAPS = (("layout", (1026, 101)), ("local_dim", 1024), ("one_by_one", True))
CASES = {
    "GV": Case(["gin/peers/geometric.gin"], ["geometric.iterations = 1000"]),
    "CVNet": Case(["gin/peers/cvnet.gin", "gin/size/base.gin"], (), MAPS),
    **{
        name: Case([f"gin/peers/{file}.gin", "gin/size/base.gin"])
        for name, file in (("R2Former", "r2former"), ("RRT", "rrt"), ("AMES", "ames"))
    },
    **{f"LOCORE-{size}": Case(["gin/longformer.gin", f"gin/size/{size}.gin"]) for size in ("tiny", "small", "base")},
    **{
        f"LOCORE-{name}": Case([f"gin/{file}.gin", "gin/size/base.gin"])
        for name, file in (("RWKV", "rwkv"), ("Mamba", "mamba"))
    },
}


def table(cost: Callable[[Case], dict[str, Any]], passes: int, warm_up: int, precision: str) -> str:
    """Measure every row, and return the page in Markdown; a row that fails says why.

    Args:
        cost: measures a row.
        passes: of each row.
        warm_up: passes before them.
        precision: of the weights and products.
    """
    rows = []
    for name, case in CASES.items():
        print(f"{name} …", file=sys.stderr)
        try:
            rows.append({"": name, **_cells(cost(case))})
        except ValueError as error:
            rows.append({"": name, "parameters, M": f"failed: {error}"})
    return (
        markdown(rows) + f"\nPer 100 candidates of random descriptors; mean ± deviation of {passes} passes after "
        f"{warm_up}, batched except CVNet, which reads maps of images of 512 × 512. Parameters are without the vision "
        "model; GFLOPs are of what has weights; memory is what a pass takes above what there was before.\n\n"
        f"Precision: {precision}. Machine: {machine()}. Commit: {commit()}.\n"
    )


def _cells(found: dict[str, Any]) -> dict[str, str]:
    mean, deviation = 1000 * found["latency_mean_s"], found["latency_deviation_s"]
    spread = f" ± {1000 * deviation:.1f}" if deviation is not None else ""
    work = found["gflops"]
    return {
        "parameters, M": f"{found['parameters'] / 1e6:.2f}",
        "GFLOPs": f"{work:,.1f}" if work else "",
        "GFLOP/s": f"{1000 * work / mean:,.1f}" if work else "",
        "latency, ms": f"{mean:,.1f}{spread}",
        "peak MB": f"{found['peak_mb']:,}",
    }
