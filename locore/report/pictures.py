"""Pictures: lists before and after, training, recalls, gains, cost against length, and comparisons."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from locore.datasets.benchmark import ImageSet
from locore.evaluation.search import Search
from locore.report.tables import columns, protocols
from locore.utils.files import atomic
from locore.utils.progress import track

SHOWN = 10  # places of a list
TILE, FRAME, GAP, LABEL = 104, 4, 8, 64  # pixels of a list's pictures, and what is around them
GREEN, RED, GREY = "#1a9850", "#d73027", "#8a94a1"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once; `savefig` draws everything a second time to find the layout
    with atomic(path) as temporary:
        Image.fromarray(np.asarray(canvas.buffer_rgba())).save(temporary, "PNG")
    plt.close(figure)


def lists(
    path: Path,
    searched: Search,
    order: np.ndarray,
    queries: ImageSet,
    gallery: ImageSet,
    count: int,
) -> None:
    """Draw queries with their first places before and after re-ranking, framed green if right, red if wrong, grey if
    junk.

    Args:
        path: of the picture.
        searched: the search.
        order: (Q, K) re-ranked order.
        queries: images.
        gallery: images.
        count: number of queries, drawn with seed 0.
    """
    shown = min(SHOWN, order.shape[1])
    chosen = np.random.default_rng(0).permutation(len(order))[:count]
    step, left = TILE + GAP, TILE + LABEL
    sheet = Image.new("RGB", (left + shown * step + GAP, len(chosen) * (2 * step + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, row in enumerate(track(chosen, "drawing lists")):
        top = GAP + number * (2 * step + GAP)
        sheet.paste(_tile(queries.image(int(searched.rows[row])), None), (GAP, top + step // 2))
        for line, (word, places) in enumerate((("before", np.arange(shown)), ("after", order[row, :shown]))):
            y = top + line * step
            pen.text((left - GAP, y + TILE // 2), word, fill="black", font=font, anchor="rm")
            for column, place in enumerate(places):
                colour = GREEN if searched.right[row, place] else GREY if searched.junk[row, place] else RED
                image = gallery.image(int(searched.neighbours.indices[row, place]))
                sheet.paste(_tile(image, colour), (left + column * step, y))
    with atomic(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(image: Image.Image, frame: str | None) -> Image.Image:
    """Fit an image into a square of TILE pixels with a coloured frame."""
    inner = TILE - 2 * FRAME
    small = ImageOps.pad(image.convert("RGB"), (inner, inner), Image.Resampling.BICUBIC, color="white")
    return ImageOps.expand(small, FRAME, frame or "white")


def training(path: Path, history: dict) -> None:
    """Draw the loss of every step and the metrics of every validation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    loss = np.array(history["loss"])
    window = max(1, min(20, len(loss)))
    left.plot(np.arange(1, len(loss) + 1), loss, color="0.8", linewidth=1)
    smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
    left.plot(np.arange(window, len(loss) + 1), smooth, color="#2166ac")
    left.set(xlabel="step", ylabel=f"loss (line: mean of {window})", ylim=(0, None))
    steps = [point["step"] for point in history["validation"]]
    for name in (n for n in history["validation"][0] if n not in ("step", "seconds")) if steps else ():
        right.plot(steps, [point[name] for point in history["validation"]], marker="o", label=name)
    right.set(xlabel="step", ylabel="validation, %", ylim=(0, 100))
    if steps:
        right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)


def curves(path: Path, right: dict[str, np.ndarray]) -> None:
    """Draw recall against the length of the list, a line for each method.

    Args:
        path: of the picture.
        right: (Q, depth) bool of each method.
    """
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for method, found in right.items():
        recalls = 100 * np.maximum.accumulate(found, axis=1).mean(axis=0)
        style = ":" if method == "oracle" else "-"
        axis.plot(np.arange(1, len(recalls) + 1), recalls, style, label=f"{method}: R@1 {recalls[0]:.1f}")
    axis.set(xscale="log", xlabel="k", ylabel="R@k, %", title="Queries with a right image among the first k")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, path)


def gains(path: Path, before: np.ndarray, after: np.ndarray, metric: str) -> None:
    """Draw a metric of each query before and after: one against the other, and the sorted gains.

    Args:
        path: of the picture.
        before: (Q,) in percent.
        after: (Q,) in percent.
        metric: its name.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    left.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    left.scatter(before, after, s=8, alpha=0.3, linewidths=0)
    left.plot(before.mean(), after.mean(), marker="+", markersize=16, color=RED, label="means")
    left.set(
        xlabel=f"before: {metric} of a query, %", ylabel="after, %", xlim=(-2, 102), ylim=(-2, 102), aspect="equal"
    )
    left.legend(loc="lower right")
    gain = np.sort(after - before)[::-1]
    better, worse = (gain > 0).mean(), (gain < 0).mean()
    share = 100 * (np.arange(len(gain)) + 0.5) / len(gain)
    right.fill_between(share, gain, where=gain >= 0, color=GREEN, step="mid", label=f"better: {better:.0%} of queries")
    right.fill_between(share, gain, where=gain <= 0, color=RED, step="mid", label=f"worse: {worse:.0%}")
    right.axhline(gain.mean(), color="0.3", linestyle=":", label=f"mean {gain.mean():+.1f}")
    right.set(xlabel="queries in order of their gain, %", ylabel=f"gain in {metric}, points", xlim=(0, 100))
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)


def lengths(path: Path, measured: dict[str, dict[str, dict]]) -> None:
    """Draw time and memory against the number of tokens, on logarithmic axes.

    Args:
        path: of the picture.
        measured: what grows (a row of panels) -> backbone (a line) -> its points and exponents.
    """
    figure, axes = plt.subplots(
        len(measured), 2, figsize=(10, 3.8 * len(measured)), layout="constrained", squeeze=False
    )
    for (way, backbones), row in zip(measured.items(), axes, strict=True):
        for axis, field, exponent, label in zip(
            row, ("seconds", "mb"), ("time_exponent", "memory_exponent"), ("seconds", "memory, MB"), strict=True
        ):
            for backbone, points in backbones.items():
                axis.plot(points["tokens"], points[field], marker="o", label=f"{backbone}: T^{points[exponent]:.2f}")
            axis.set(xscale="log", yscale="log", xlabel="tokens T", ylabel=label, title=way)
            axis.grid(alpha=0.3, which="both")
            axis.legend()
    save(figure, path)


def comparison(
    path: Path, finished: dict[str, list[dict]], gains: dict[tuple[str, str], dict[str, tuple[float, float]]]
) -> None:
    """Draw the rows of a comparison: bars from global to the mean with 95 % intervals, a dot for each seed, global and
    oracle as lines.

    A panel shows a metric; of several protocols, the deciding metric of each.

    Args:
        path: of the picture.
        finished: metrics of the runs of each row.
        gains: of a protocol and a metric the interval of each row's gain over global, in points.
    """
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
            low, high = gains[protocol, metric][names[place]]
            axis.plot([start + low, start + high], [place, place], color="#08519c", linewidth=1)
            axis.plot(dots, [place] * len(dots), "o", color="#08519c", markersize=5)
        for reference, style in (("global", "--"), ("oracle", ":")):
            axis.axvline(one[reference][metric], linestyle=style, color="0.3", label=reference)
        ends = [start + bound for bounds in gains[protocol, metric].values() for bound in bounds]
        everything = [x for v in values for x in v] + ends + [one["global"][metric], one["oracle"][metric]]
        margin = 0.1 * (max(everything) - min(everything)) + 0.1
        axis.set(xlim=(min(everything) - margin, max(everything) + margin), title=title)
        axis.set_ylim(len(names) - 0.4, -0.6)  # the first row on top
        if axis is not axes[0]:
            axis.set_yticklabels([])
    axes[-1].legend(loc="lower right")
    save(figure, path)
