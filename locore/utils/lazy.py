"""Packages whose names are imported when they are first used, so that `import locore` takes no time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from locore.utils.nearest import did_you_mean


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        names: module of each name that it offers.
    """
    known = sorted(names)

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'{did_you_mean(name, known)}")
        return getattr(importlib.import_module(names[name]), name)

    return get, lambda: known, known
