"""A setting of the wrong type is said by its name, before anything is built with it."""

from __future__ import annotations

import inspect
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

LISTS = (list, tuple, Sequence)
NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
NAMES |= dict.fromkeys(LISTS, "a list") | {Path: "a path", dict: "a dictionary"}


def check_types(settings: Any) -> None:
    """Refuse fields of a dataclass that are of another type than declared; to be called in its `__post_init__`.

    Raises:
        ValueError: with the name of the field.
    """
    kind = type(settings)
    check(kind.__name__, {f.name: getattr(settings, f.name) for f in fields(settings) if f.init}, kind)


def check(owner: str, settings: Mapping[str, object], build: Callable) -> None:
    """Refuse arguments of a class or function that are of another type than it declares.

    Raises:
        ValueError: with the name of the argument.
    """
    try:
        declared = get_type_hints(build.__init__ if inspect.isclass(build) else build)  # type: ignore[misc]
    except (NameError, TypeError):  # another package's annotations may be for its type checker alone
        return
    for name, value in settings.items():
        if name in declared and not fits(value, declared[name]):
            raise ValueError(f"{owner}.{name} = {value!r} must be {said(declared[name])}.")


def fits(value: object, declared: Any) -> bool:
    """Whether a value is of a declared type; what is no plain type, and what is in a list, is not looked into."""
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
    return isinstance(value, plain) if plain in (bool, str, dict, type(None)) else True


def said(declared: Any) -> str:
    """A declared type in words."""
    if get_origin(declared) in (Union, types.UnionType):
        return " or ".join(said(one) for one in get_args(declared))
    plain = get_origin(declared) or declared
    made = f"made by @{plain.__name__}()" if inspect.isclass(plain) else str(declared)
    return NAMES.get(plain, made)
