"""Files that are whole or absent."""

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors import SafetensorError

from locore.utils import safetensors
from locore.utils.files import UMASK, atomic


def test_a_file_can_be_read_by_those_whom_the_user_allows(tmp_path):
    path = tmp_path / "folder" / "weights"
    with atomic(path) as temporary:
        temporary.touch(mode=0o600)  # as safetensors does
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~UMASK


def test_what_is_broken_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["weights"]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone, path = int(process.stdout), tmp_path / "w[1]"
    with atomic(path) as temporary:
        host = temporary.name.split(".")[-2].split("-")[0]
        temporary.touch()
    dead, alive, another, of_old, old = (
        tmp_path / f".w[1].{end}.tmp"
        for end in (f"{host}-{gone}-0", f"{host}-1-0", f"container-{gone}-0", "12345", "container-1-0")
    )
    other = tmp_path / f".v.{host}-{gone}-0.tmp"
    for left in (dead, alive, another, of_old, old, other):
        left.touch()
    os.utime(old, (0, 0))
    with atomic(path) as temporary:
        temporary.touch()
    assert {left.name for left in tmp_path.iterdir()} == {x.name for x in (path, alive, another, of_old, other)}


def test_threads_write_the_same_file_at_once(tmp_path):
    ready = threading.Barrier(8)

    def write(number):
        with atomic(tmp_path / "w") as temporary:
            ready.wait()
            temporary.write_text(str(number) * 1000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert len(set((tmp_path / "w").read_text())) == 1 and os.listdir(tmp_path) == ["w"]


def test_a_full_disk_is_reported_with_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_too(*_, **__):
        raise SafetensorError("I/O error")

    monkeypatch.setattr("os.fsync", full)
    with (
        pytest.raises(OSError, match=r"The disk is full while writing '.*w'; free some space"),
        atomic(tmp_path / "w") as path,
    ):
        path.write_text("much")
    monkeypatch.setattr(safetensors, "save_file", full_too)
    with pytest.raises(OSError, match=r"w' cannot be written \(I/O error\); free some space"):
        safetensors.write(tmp_path / "w", {})
    assert not list(tmp_path.iterdir())
