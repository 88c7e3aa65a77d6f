"""Several processes at one job, as `accelerate launch` starts them: who does what, and how the parts come together."""

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
    """How many there are; 1 where nobody launched several."""
    return _state().num_processes


def rank() -> int:
    """Which one this is, from 0."""
    return _state().process_index


def first() -> bool:
    """Whether this is the one that writes files and talks to the user."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    return _state().device


def wait() -> None:
    """Go on when all have come here."""
    _state().wait_for_everyone()


def agreed(value: A) -> A:
    """The first process's value, in all of them."""
    return broadcast_object_list([value])[0] if count() > 1 else value


def spread(function: Callable[[A], B], items: Sequence[A], what: str) -> list[B]:
    """Like map, under a progress bar: each process does its share of the items, and all have all results.

    All have to call it, with the same items. An item is the same work as in one process, so results are the same bits.
    """
    done = [function(item) for item in track(share(items), what)]
    return [result for part in gathered(done) for result in part]


def share(items: S) -> S:
    """The items of this process: an n-th of them, one behind the other."""
    start, end = (-(-len(items) * r // count()) for r in (rank(), rank() + 1))
    return items[start:end]


def gathered(value: A) -> list[A]:
    """What each process has, in all of them."""
    return gather_object([value])
