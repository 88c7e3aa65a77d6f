"""One side of a measurement, in a process of its own: it waits for a line on stdin, runs a pass and reports its time.

`experiments.profile` and `experiments._profiling.costs` keep several alive and let them run in turn, so that a slow
moment of the machine meets all of them alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from locore.utils.progress import track


class Side:
    """A process that runs passes one at a time.

    Args:
        spec: specification that `experiments._profiling.worker` reads.

    Attributes:
        about: what the process reported at its start.
        seconds: time of each pass.
    """

    def __init__(self, **spec: Any):
        self.seconds: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments._profiling.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()

    def run(self) -> None:
        """Run one timed pass."""
        self._say("pass")
        self.seconds.append(self._read()["seconds"])

    def close(self) -> dict:
        """End the process and return what it reports: "mb", the memory of its passes above what there was before, and
        more.
        """
        self._say("end")
        report = self._read()
        self._process.wait()
        return report

    def forget(self) -> None:
        """Drop the times of the passes so far, which were to warm up."""
        self.seconds.clear()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is reported by the read that follows

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"A measured process ended with exit status {self._process.wait()}; its messages are above. If there "
                "are none, the machine ran out of memory: measure less at a time."
            )
        report = json.loads(line)
        if "error" in report:
            raise ValueError(report["error"])
        return report


def in_turn(sides: Sequence[Side], warm_up: int, passes: int) -> None:
    """Warm up, then let every side run a pass in turn, again and again."""
    for _ in track(range(warm_up), "warming up"):
        for side in sides:
            side.run()
    for side in sides:
        side.forget()
    for _ in track(range(passes), "measuring"):
        for side in sides:
            side.run()
