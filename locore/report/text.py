"""The lines of the tables that commands print."""

from __future__ import annotations

from collections.abc import Iterable


def text_row(head: str, cells: Iterable[str]) -> str:
    """Return a line of a printed table."""
    return f"{head:<12}" + "".join(f"{cell:>16}" for cell in cells)


def bounds(intervals: Iterable[tuple[float, float]]) -> list[str]:
    """Return intervals as cells."""
    return [f"[{low:+.1f}, {high:+.1f}]" for low, high in intervals]
