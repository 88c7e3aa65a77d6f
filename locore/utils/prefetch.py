"""Compute items on other threads before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
THREADS = 2
WAITING = 4  # items under way or done


def ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Map a function over items, with the next few items computed on threads."""
    pending: list[Future[B]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == WAITING:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
