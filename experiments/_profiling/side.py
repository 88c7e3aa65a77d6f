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
        spec: what `_work` reads.
        seconds: filled by `run`.
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
        """One timed pass."""
        self._say("pass")
        self.seconds.append(self._read()["seconds"])

    def close(self) -> dict:
        """End the process. -> "mb", the most that its passes held above what there was before, and what else it saw."""
        self._say("end")
        said = self._read()
        self._process.wait()
        return said

    def forget(self) -> None:
        """The passes so far were to warm up."""
        self.seconds.clear()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is said by the read that follows

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"A measured process ended with exit status {self._process.wait()}; what it said stands above, and if "
                "that is nothing the machine ran out of memory: measure less at a time."
            )
        said = json.loads(line)
        if "error" in said:
            raise ValueError(said["error"])
        return said


def in_turn(sides: Sequence[Side], warm_up: int, passes: int) -> None:
    """Warm up, then let every side run a pass, again and again."""
    for _ in track(range(warm_up), "warming up"):
        for side in sides:
            side.run()
    for side in sides:
        side.forget()
    for _ in track(range(passes), "measuring"):
        for side in sides:
            side.run()
