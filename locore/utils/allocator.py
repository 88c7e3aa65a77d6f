"""Let glibc keep freed memory: returning it to the system and faulting it in again costs half of a training step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Raise glibc's thresholds; does nothing without glibc."""
    libc = _glibc()
    if libc:
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)


def give_back_freed_memory() -> None:
    """Return free memory to the system; does nothing without glibc."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") else None
    except OSError:
        return None
