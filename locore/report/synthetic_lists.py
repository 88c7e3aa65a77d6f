"""What encoders learned on synthetic lists, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from locore.report.pictures import plt, save

MEANING = {"easy": "shares something with the query", "linked": "shares something with the easy one alone"}


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return a table with a row for each backbone: the share of wrong candidates below the right one, with 95 %
    intervals.
    """
    lines = ["|  | parameters | " + " | ".join(MEANING) + " |", "|---|---|" + "---|" * len(MEANING)]
    for name, values in found.items():
        cells = (f"{v['mean']:.1f} [{v['low']:.1f}, {v['high']:.1f}]" for v in (values[kind] for kind in MEANING))
        lines.append(f"| {name} | {values['parameters'] / 1e6:.2f} M | " + " | ".join(cells) + " |")
    meanings = "; ".join(f"*{kind}* {what}" for kind, what in MEANING.items())
    return "\n".join([*lines, "", f"Wrong candidates below the right one that {meanings}, %; 50 is chance."]) + "\n"


def picture(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Draw a panel for each kind of candidate, a line for each backbone."""
    figure, axes = plt.subplots(1, len(MEANING), figsize=(11, 4), sharey=True, layout="constrained")
    for axis, (kind, what) in zip(axes, MEANING.items(), strict=True):
        for name, values in found.items():
            steps = [point["step"] for point in values["history"]]
            axis.plot(steps, [point[kind] for point in values["history"]], marker=".", label=name)
        axis.axhline(50, linestyle="--", color="0.3", linewidth=1)
        axis.set(xlabel="steps of 64 lists", title=f"{kind}: {what}")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="wrong candidates below it, %")
    axes[-1].legend(fontsize=8)
    save(figure, path)
