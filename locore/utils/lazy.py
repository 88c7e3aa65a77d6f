"""Packages whose names are imported when they are first used, so that `import locore` takes no time."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        names: module of each name that it offers.
    """
    known = sorted(names)

    def get(name: str) -> Any:
        if name not in names:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise AttributeError(f"module '{package}' has no attribute '{name}'{hint}")
        return getattr(importlib.import_module(names[name]), name)

    return get, lambda: known, known
