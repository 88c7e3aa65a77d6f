"""Training curves: rows are compared at the time of the fastest run."""

import pytest

from locore.report import curves


def training(*points):
    validation = [{"step": 10 * i, "seconds": s, "mAP@R": v} for i, (s, v) in enumerate(points)]
    return {"monitor": "mAP@R", "history": {"validation": validation}}


def test_rows_are_compared_at_the_time_of_the_fastest_run(tmp_path):
    assert curves.at_equal_time(tmp_path, ["slow", "fast"]) == ""
    curves.add(tmp_path, "slow", 0, training((30, 50), (60, 40), (90, 70)))
    assert curves.at_equal_time(tmp_path, ["slow", "fast"]) == ""
    curves.add(tmp_path, "slow", 1, training((30, 52), (60, 54), (90, 58)))
    curves.add(tmp_path, "fast", 0, training((1, 1)))
    curves.add(tmp_path, "fast", 0, training((20, 41), (65, 47)))  # another run in place of the last one
    curves.add(tmp_path, "late", 0, training((70, 99)))
    found = curves.at_equal_time(tmp_path, ["slow", "fast", "late"])
    assert "until 65 s" in found and "slow 52.0, fast 47.0, late none yet." in found


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / curves.CURVES).write_text("row,seed\nmamba,0\n")
    with pytest.raises(ValueError, match=r"curves.csv' is damaged"):
        curves.at_equal_time(tmp_path, [])
