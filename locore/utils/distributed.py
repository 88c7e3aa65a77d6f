"""Several processes at one job, as `accelerate launch` starts them: shares of work, and collected results."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed import all_gather, monitored_barrier, new_group

from locore.utils.progress import track

MINUTES = float(os.environ.get("LOCORE_TIMEOUT", 30))  # that processes wait for each other

A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S", bound=Any)  # a sequence, or an array


@cache
def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=MINUTES))


@cache
def _meeting() -> Any:
    """The group by which processes wait for each other: gloo's alone tells which of them has not come."""
    return new_group(backend="gloo")


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
    """Wait until all processes have come here.

    Raises:
        ValueError: one has not come in time.
    """
    if count() == 1:
        return
    try:
        monitored_barrier(_meeting(), timedelta(minutes=MINUTES), wait_all_ranks=True)
    except RuntimeError as error:
        late = sorted({int(number) for number in re.findall(r"[Rr]anks? (\d+)", str(error))} - {rank()})
        missing = f"process {', '.join(map(str, late))}" if late else "another process"
        raise ValueError(
            f"Process {rank()} of {count()} has waited {MINUTES:g} minutes for {missing}, which is stuck or has ended; "
            "look at its messages. If it only needs longer, set LOCORE_TIMEOUT to more minutes."
        ) from error


def agreed(value: A) -> A:
    """Return the first process's value in all processes; errors as `wait`."""
    wait()
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


def joined(part: Tensor) -> Tensor:
    """Join the rows (n, ...) that each process has to all rows (N, ...), through which gradients flow back.

    Every process is taken to compute the same loss of all rows, and gradients of weights to be averaged over processes,
    as in training.
    """
    return _Joined.apply(part) if count() > 1 else part


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part):
        parts = [torch.empty_like(part) for _ in range(count())]
        all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        # The average over processes later divides by their number.
        return grad.chunk(count())[rank()] * count()


def share(items: S) -> S:
    """Return this process's share of the items, a contiguous part."""
    start, end = (-(-len(items) * r // count()) for r in (rank(), rank() + 1))
    return items[start:end]


def gathered(value: A) -> list[A]:
    """Return the values of all processes, in all of them; errors as `wait`."""
    wait()
    return gather_object([value])
