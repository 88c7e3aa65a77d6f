"""Compute items before they are needed: in worker processes where there are cores for them, else on threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from locore.utils import distributed

A = TypeVar("A")
B = TypeVar("B")
THREADS = 2
WAITING = 4  # items under way or done
FEWEST = 2  # workers that are worth their start
MOST = 8


def ahead(function: Callable[[A], B], items: Sequence[A], uses_gpu: bool = False) -> Iterator[B]:
    """Map a function over items, with the next few items computed beforehand.

    From a worker, tensors come by shared memory and, for a GPU, into pinned memory.

    Args:
        function: of an item.
        items: the items.
        uses_gpu: the function computes on the GPU, which only threads of this process can do.
    """
    workers = 0 if uses_gpu else min(_workers(), len(items))
    return _by_processes(function, items, workers) if workers >= FEWEST else _by_threads(function, items)


def _workers() -> int:
    """Return how many worker processes this process has cores for, beside itself."""
    cores = (os.cpu_count() or 1) // distributed.count()
    return min(MOST, cores - 1) if hasattr(os, "fork") else 0


@dataclass(frozen=True)
class _Failure:
    error: Exception


class _Items(Dataset):
    """The results, and in the place of one that fails its error, whose message stays as it is."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        try:
            return self.function(self.items[place])
        except Exception as error:
            return _Failure(error)


def _by_processes(function: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    found = DataLoader(
        _Items(function, items),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # so that the random state of the process stays
        multiprocessing_context="fork",
    )
    for each in found:
        if isinstance(each, _Failure):
            raise each.error
        yield each


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the process that waits, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _by_threads(function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
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
