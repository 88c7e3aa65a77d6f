"""Files that are whole or absent."""

import os
import stat

import pytest

from locore.files import UMASK, atomic


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
