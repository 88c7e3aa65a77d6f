"""Several processes at one job, as `accelerate launch` starts them: shares of work, and collected results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from locore.utils.progress import track

A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S", bound=Any)  # a sequence, or an array


@cache
def _state() -> PartialState:
    # Some wait by design while another writes a file of many gigabytes; a process that dies ends the others anyway.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def count() -> int:
    """Return the number of processes; 1 if several were not launched."""
    return _state().num_processes


def rank() -> int:
    """Return the number of this process, from 0."""
    return _state().process_index


def first() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """Return the device of this process: its own GPU, or the CPU."""
    return _state().device


def wait() -> None:
    """Wait until all processes have come here."""
    _state().wait_for_everyone()


def agreed(value: A) -> A:
    """Return the first process's value in all processes."""
    return broadcast_object_list([value])[0] if count() > 1 else value


def spread(function: Callable[[A], B], items: Sequence[A], what: str) -> list[B]:
    """Map a function over items under a progress bar: each process does its share, and all get all results.

    All processes have to call it, with the same items. An item is the same work as in one process, so results have the
    same bits.

    Args:
        function: applied to each item.
        items: of all processes.
        what: name of the progress bar.
    """
    done = [function(item) for item in track(share(items), what)]
    return [result for part in gathered(done) for result in part]


def share(items: S) -> S:
    """Return this process's share of the items, a contiguous part."""
    start, end = (-(-len(items) * r // count()) for r in (rank(), rank() + 1))
    return items[start:end]


def gathered(value: A) -> list[A]:
    """Return the values of all processes, in all of them."""
    return gather_object([value])
