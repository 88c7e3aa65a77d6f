"""Files that are whole or absent: written under a temporary name and moved into place."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")

ABANDONED = 24 * 3600  # seconds
UMASK = os.umask(0o022)
os.umask(UMASK)  # it can only be read by setting it


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there is moved into place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _abandoned(left):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~UMASK)  # some libraries write for the owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"The disk is full while writing '{path}'; free some space, and run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@cache
def _host() -> str:
    """Return a short name of the space in which a process number is unique: this machine, or this container of it."""
    space = Path("/proc/self/ns/pid")
    numbered_in = os.readlink(space) if space.exists() else ""
    return hashlib.sha256(f"{platform.node()} {numbered_in}".encode()).hexdigest()[:8]


def _abandoned(temporary: Path) -> bool:
    """Return whether nobody writes a temporary file any more: its process is gone, or it is older than a day."""
    try:
        if time.time() - temporary.stat().st_mtime > ABANDONED:
            return True
        host, pid, _ = temporary.name.split(".")[-2].split("-")
        if host != _host():
            return False
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except (OSError, ValueError):  # another user's, gone already, or not named by us
        pass
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Write lines as comma-separated values, atomically; a line without a column leaves it empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def read_csv(path: Path, header: Sequence[str], parse: Callable[[dict[str, str]], Parsed]) -> list[Parsed]:
    """Read the lines that `write_csv` wrote; without a file there are none.

    Args:
        path: the file.
        header: the columns.
        parse: makes of a line what is returned.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            lines = [{name: line[name] for name in header} for line in csv.DictReader(file)]
        if any(None in line.values() for line in lines):
            raise ValueError("a line is too short")
        return [parse(line) for line in lines]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged ({error!r}); restore or delete it.") from error


def check_cache() -> None:
    """Check, before an hour of work whose result is cached, that the cache can be written.

    Raises:
        ValueError: it cannot.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"The cache '{folder}' cannot be written ({error.strerror}); set LOCORE_CACHE to another folder."
        ) from error


def cache_folder() -> Path:
    """Return the folder of cached descriptors and renderings: $LOCORE_CACHE, or ~/.cache/locore."""
    return Path(os.environ.get("LOCORE_CACHE") or Path.home() / ".cache" / "locore")
