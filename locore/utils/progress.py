"""Progress bars with the time left, the same for every long stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
SILENT = os.environ.get("RANK", "0") != "0"  # several processes at one job draw one bar
T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None, start: int = 0) -> Iterator[T]:
    """Yield items under a progress bar, shown by the first process.

    Args:
        items: what is yielded.
        what: name of the bar.
        total: number of items; None = the length of `items`.
        start: number of items that are done already.
    """
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=SILENT) as progress:
        count = total if total is not None else len(items)  # type: ignore[arg-type]
        task = progress.add_task(what, total=count, completed=start)
        for item in items:
            yield item
            progress.advance(task)
