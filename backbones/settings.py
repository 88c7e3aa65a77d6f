"""Check the types of settings, so that an error names the setting before anything is built with it."""

from __future__ import annotations

import inspect
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

LISTS = (list, tuple, Sequence)
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
WORDS |= dict.fromkeys(LISTS, "a list") | {Path: "a path"} | dict.fromkeys((dict, Mapping), "a dictionary")


def check_types(settings: Any) -> None:
    """Check the fields of a dataclass against their declared types; to be called in its `__post_init__`.

    Raises:
        ValueError: a field has another type; the message names it.
    """
    kind = type(settings)
    check(kind.__name__, {f.name: getattr(settings, f.name) for f in fields(settings) if f.init}, kind)


def check(owner: str, settings: Mapping[str, object], build: Callable) -> None:
    """Check arguments of a class or function against its declared types.

    Args:
        owner: its name, for messages.
        settings: the arguments by name.
        build: the class or function.

    Raises:
        ValueError: an argument has another type; the message names it.
    """
    try:
        declared = get_type_hints(build.__init__ if inspect.isclass(build) else build)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations of another package may be for its type checker alone
        return
    for name, value in settings.items():
        if name in declared and not fits(value, declared[name]):
            raise ValueError(f"{owner}.{name} = {value!r} must be {in_words(declared[name])}.")


def fits(value: object, declared: Any) -> bool:
    """Return whether a value has a declared type; elements of lists, and types that are not plain, are not checked."""
    origin = get_origin(declared)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(declared))
    if declared is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    plain = origin or declared
    if plain in LISTS:  # gin has both ways to write one
        return isinstance(value, Sequence) and not isinstance(value, str)
    if plain is Path:
        return isinstance(value, str | Path)
    if inspect.isclass(plain) and is_dataclass(plain):
        return isinstance(value, plain)
    return isinstance(value, plain) if plain in (bool, str, dict, Mapping, type(None)) else True


def in_words(declared: Any) -> str:
    """Return a declared type in words."""
    if get_origin(declared) in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in get_args(declared))
    plain = get_origin(declared) or declared
    other = f"made by @{plain.__name__}()" if inspect.isclass(plain) else str(declared)
    return WORDS.get(plain, other)
