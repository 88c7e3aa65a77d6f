"""Scalars of a training for TensorBoard, and for other trackers that accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import tracking
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from backbones.registry import suggest

PROJECT = "locore"
TENSORBOARD = "tensorboard"


def check(names: Sequence[str]) -> None:
    """Raise a ValueError if a tracker is not known, or its package is not installed."""
    known = [name for name in map(str, tracking.LOGGER_TYPE_TO_CLASS) if name != TENSORBOARD]
    installed = [*map(str, tracking.get_available_trackers()), *set(known).difference(tracking.LoggerType.list())]
    for name in names:
        if name not in known:
            raise ValueError(f"Unknown tracker '{name}' in Training.trackers{suggest(name, known)}")
        if name not in installed:
            raise ValueError(f"The tracker '{name}' in Training.trackers is not installed; install its package.")


def described(names: Sequence[str], folder: Path, first_step: int) -> list[str | GeneralTracker]:
    """Return what accelerate logs with: TensorBoard in the folder, without steps that are repeated, and the others."""
    return [TensorBoardTracker(TENSORBOARD, str(folder), purge_step=first_step), *names]


def settings(values: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    """Return settings as trackers take them: numbers and text."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
