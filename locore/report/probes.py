"""The results of probes as a table and a picture."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from locore.report.pictures import plt, save

Found = dict[str, dict[str, dict[str, float]]]  # run -> measure -> mean, low and high

# What a measure says, by the start of its name.
MEANING = {
    "order: score": "deviation of a candidate's score over random orders of its list",
    "order: ": "deviation of a query's metric over these orders, in points",
    "shuffled - searched": "the metric over these orders less that of the order of the search, in points",
    "transitivity gain": "what the hard view's score falls by, in deviations of its list's scores, when the easy "
    "view's descriptors of what both show are replaced",
    "elsewhere": "the same when as many descriptors of something else in the easy view are replaced",
    "places": "how many places the hard view falls by in the first case, the easy view not counted",
    "trained with a link": "share of training images with a linked view among the neighbours that their lists are of",
}


def meaning(name: str) -> str:
    """Return the meaning of a measure."""
    return next(meaning for start, meaning in MEANING.items() if name.startswith(start))


def two_digits(value: float) -> str:
    """Format a number with two digits, and no sign before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def markdown(found: Found) -> str:
    """Return a table with a row for each run: means with 95 % intervals."""
    names = list(next(iter(found.values())))
    lines = ["|  | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for run, values in found.items():
        cells = (
            f"{two_digits(v['mean'])} [{two_digits(v['low'])}, {two_digits(v['high'])}]"
            for v in (values[n] for n in names)
        )
        lines.append(f"| {run.replace('|', '/')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- *{name}*: {meaning(name)}." for name in names)]) + "\n"


def picture(path: Path, found: Found) -> None:
    """Draw a panel for each measure: a point and its interval for each run."""
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


@dataclass(frozen=True)
class Link:
    """Views of the transitivity probe, for a picture.

    Attributes:
        query: the view.
        easy: the view.
        hard: the view.
        replaced: (M, 2) positions of the replaced descriptors in the easy view, x and y in [0, 1].
        side: of a cell, as a share of the view.
        lines: what became of the hard view under each run.
    """

    query: Image.Image
    easy: Image.Image
    hard: Image.Image
    replaced: np.ndarray
    side: float
    lines: list[str]


def draw_links(path: Path, shown: list[Link]) -> None:
    """Draw the supplement's Figure C: query, easy view with what is replaced, hard view, and change of its score."""
    figure, axes = plt.subplots(
        len(shown),
        4,
        squeeze=False,
        figsize=(12.5, 2.6 * len(shown)),
        width_ratios=[1, 1, 1, 1.9],
        layout="constrained",
    )
    for row, link in zip(axes, shown, strict=True):
        views = (
            ("query", link.query),
            ("easy, linked to both", link.easy),
            ("hard, not seen by the query", link.hard),
        )
        for axis, (title, image) in zip(row, views, strict=False):
            axis.imshow(image)
            axis.set_title(title, fontsize=10)
        side = link.side * np.array(link.easy.size)
        for x, y in link.replaced * np.array(link.easy.size) - side / 2:
            row[1].add_patch(plt.Rectangle((x, y), *side, facecolor=(1, 1, 1, 0.6), edgecolor="black", hatch="xx"))
        row[3].text(0, 0.5, "\n".join(link.lines), va="center", fontsize=10, parse_math=False)
        for axis in row:
            axis.set_axis_off()
    save(figure, path)


@dataclass(frozen=True)
class Probes:
    """The results that `experiments.probe` wrote to a folder.

    Attributes:
        found: of each run the measures.
        links: the picture of triples, a PNG in base64; None on other benchmarks than `posters`.
    """

    found: Found
    links: str | None

    @classmethod
    def read(cls, folder: Path) -> Probes:
        """Read a folder.

        Raises:
            ValueError: it has no results, or they are damaged.
        """
        try:
            found = json.loads((folder / "probe.json").read_text())["runs"]
            markdown(found)  # reads all that is shown
            picture = folder / "links.png"
            return cls(found, base64.b64encode(picture.read_bytes()).decode() if picture.exists() else None)
        except FileNotFoundError:
            raise ValueError(f"'{folder}' has no probe.json; give the --out folder of experiments.probe.") from None
        except (json.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise ValueError(f"'{folder / 'probe.json'}' is damaged; run experiments.probe again.") from error
