"""Settings of the wrong type: said by name, wherever they are given."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from backbones import create
from backbones.settings import check_types
from locore.training import Training


@dataclass
class Settings:
    count: int = 1
    rate: float = 0.5
    on: bool = True
    name: str | None = None
    stages: Sequence[str] = ()
    table: dict[str, int] | None = None

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
        ({"stages": 3}, "stages = 3 must be a sequence."),
        ({"table": []}, "table = [] must be a dict or None."),
    ],
)
def test_what_is_not_is_said(wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**wrong)


def test_the_library_says_it_too():
    with pytest.raises(ValueError, match=r"Training\.steps = 1\.5 must be a whole number"):
        Training(steps=1.5)
    with pytest.raises(ValueError, match=r"mamba\.depth = '4' must be a whole number"):
        create("mamba", depth="4")
