"""What probes of several re-rankers found, as a table and a picture."""

from __future__ import annotations

from pathlib import Path

from locore.report.pictures import plt, save

Found = dict[str, dict[str, dict[str, float]]]  # run -> measure -> mean, low and high


def markdown(found: Found) -> str:
    """A row a run: means with 95 % intervals."""
    names = list(next(iter(found.values())))
    lines = ["|  | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for run, values in found.items():
        cells = (f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in (values[name] for name in names))
        lines.append(f"| {run.replace('|', '/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(path: Path, found: Found) -> None:
    """A panel for each that was measured: a point and its interval a run."""
    runs = list(found)
    names = list(found[runs[0]])
    figure, axes = plt.subplots(
        1,
        len(names),
        figsize=(3 * len(names) + 1, 1 + 0.4 * len(runs)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], names, strict=True):
        values = [found[run][name] for run in runs]
        means = [v["mean"] for v in values]
        reach = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
        axis.axvline(0, color="0.7", linewidth=1)
        axis.errorbar(means, range(len(runs)), xerr=reach, fmt="o", color="#2166ac")
        axis.set(title=name, yticks=range(len(runs)))
        axis.set_yticklabels(runs, parse_math=False)
        axis.grid(alpha=0.3)
    axes[0, 0].invert_yaxis()
    save(figure, path)
