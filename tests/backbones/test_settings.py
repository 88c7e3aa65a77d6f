"""Settings of the wrong type are reported by name, wherever they are given."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbones import create
from backbones.settings import check, check_types
from locore.training.loop import Training


@dataclass
class Settings:
    count: int = 1
    rate: float = 0.5
    on: bool = True
    name: str | None = None
    stages: Sequence[str] = ()
    table: dict[str, int] | None = None
    pair: tuple[int, ...] = (1,)
    path: str | Path = ""
    other: Any = None
    training: Training | None = None

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    "fine",
    [
        {"count": np.int64(3)},
        {"rate": 2},
        {"rate": np.float32(0.1)},
        {"name": "x"},
        {"stages": ["a"]},
        {"pair": [1, 2]},
        {"path": "x"},
        {"path": Path("x")},
        {"other": object()},
        {"table": {"a": 1}},
    ],
)
def test_what_is_declared_is_taken(fine):
    settings = Settings(**fine)
    assert all(getattr(settings, name) == value for name, value in fine.items())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 1.5}, "Settings.count = 1.5 must be a whole number."),
        ({"count": True}, "count = True must be a whole number."),
        ({"count": None}, "count = None must be a whole number."),
        ({"rate": "1e-3"}, "rate = '1e-3' must be a number."),
        ({"rate": False}, "rate = False must be a number."),
        ({"on": 1}, "on = 1 must be True or False."),
        ({"name": 3}, "name = 3 must be a string or None."),
        ({"stages": 3}, "stages = 3 must be a list."),
        ({"training": "x"}, "training = 'x' must be made by @Training() or None."),
        ({"training": Training}, "must be made by @Training() or None."),
        ({"stages": "ab"}, "stages = 'ab' must be a list."),
        ({"table": []}, "table = [] must be a dictionary or None."),
    ],
)
def test_what_is_not_there_is_reported(wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**wrong)


def test_what_another_package_does_not_declare_is_not_checked():
    def unannotated(width=192, depth: "OnlyForItsTypeChecker" = 2): ...  # noqa: F821

    def partly(width=192, depth: int = 2): ...

    check("theirs", {"width": "wide", "depth": "deep"}, unannotated)
    check("theirs", {"width": "wide"}, partly)
    with pytest.raises(ValueError, match=r"theirs\.depth = 'deep' must be a whole number"):
        check("theirs", {"width": "wide", "depth": "deep"}, partly)


def test_the_library_says_it_too():
    with pytest.raises(ValueError, match=r"Training\.steps = 1\.5 must be a whole number"):
        Training(steps=1.5)
    with pytest.raises(ValueError, match=r"mamba\.depth = '4' must be a whole number"):
        create("mamba", depth="4")
