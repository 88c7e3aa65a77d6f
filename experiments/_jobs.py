"""Runs of other commands, each in a process of its own, one after the other or several at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A run of a command.

    Attributes:
        name: what it is, for people.
        command: what is run.
        log: its messages, where several run at a time.
    """

    name: str
    command: list[str]
    log: Path


def run_jobs(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[int, str | None]]:
    """Run jobs, and yield the place of each as it ends, with its last message if it failed.

    One at a time shows its progress. Several at a time write logs, and share the cores and the GPUs evenly. If this
    process is interrupted, so are they.
    """
    if at_once == 1 or len(jobs) == 1:
        for place, job in enumerate(jobs):
            print(f"{job.name}: {shlex.join(job.command)}", file=sys.stderr)
            yield place, run_command(job.command)
        return
    waiting = deque(range(len(jobs)))
    running: dict[int, tuple[int, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for slot in [slot for slot in range(at_once) if slot not in running][: len(waiting)]:
                place = waiting.popleft()
                running[slot] = place, _started(jobs[place], slot, at_once), time.monotonic()
                print(f"{jobs[place].name}: started, see {jobs[place].log}", file=sys.stderr)
            time.sleep(POLL_SECONDS)
            for slot, (place, process, start) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                minutes = (time.monotonic() - start) / 60
                print(f"{jobs[place].name}: ended after {minutes:.1f} minutes", file=sys.stderr)
                said = jobs[place].log.read_text(errors="replace").strip()
                yield place, _failure(process.returncode, said[said.rfind("\n") + 1 :])
    finally:
        for _, process, _ in running.values():
            process.terminate()


def run_command(command: list[str]) -> str | None:
    """Run a command with its progress shown; returns the last line of its stderr if it failed."""
    # Behind a pipe, rich has to be told that a person is watching, or its bars stand still until they are full.
    watched = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"} if sys.stderr.isatty() else {}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, **watched}
    )
    last, line = b"", bytearray()
    assert process.stderr is not None
    try:
        while byte := process.stderr.read(1):
            sys.stderr.buffer.write(byte)
            sys.stderr.buffer.flush()
            if byte in b"\r\n":
                last = bytes(line).strip() or last
                line.clear()
            else:
                line += byte
    except KeyboardInterrupt:
        process.terminate()
        raise
    last = bytes(line).strip() or last
    return _failure(process.wait(), last.decode(errors="replace"))


def _started(job: Job, slot: int, at_once: int) -> subprocess.Popen[bytes]:
    """Start a job with its share of the machine."""
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    share = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        share["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "wb") as log:
        return subprocess.Popen(job.command, stderr=log, stdout=subprocess.DEVNULL, env={**os.environ, **share})


def _failure(status: int, last: str) -> str | None:
    return None if status == 0 else f"exit status {status}, {last}"
