"""Kernels of other packages: taken where they are installed, and said once in the log."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any

log = logging.getLogger(__name__)


@cache
def optional(module: str, name: str) -> Any | None:
    """A function of a package that may not be installed (or not be usable here), else None."""
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a CUDA package without its GPU raises what it likes
        log.info("%s is not usable (%s); the slower path runs. On a GPU: pip install 'locore[cuda]'.", module, error)
        return None
    log.info("%s.%s runs.", module, name)
    return function
