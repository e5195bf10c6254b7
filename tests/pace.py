"""How much longer work takes than the processor's time it needs: what other programs of this machine cost a lab.

A promise of seconds is one about a machine that has a processor for it. The pace is taken beside the storm, by a
process of its own that works a little all the time, so that whoever judges can tell a slow product from a slow machine.
"""

import json
import subprocess
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from pathlib import Path

_WORKER = """
import json, select, sys, time
while not select.select([sys.stdin], [], [], 0.25)[0]:
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.02:
        pass
    print(json.dumps([began, time.monotonic()]), flush=True)
"""
NEEDED = 0.02
"""Seconds of the processor that each piece of work takes."""
USUAL = 2.0
"""Times as long as that it may take: the lab itself is the rest."""


@dataclass(slots=True)
class Pace:
    """Takes the pace while a `with` block runs; can be asked meanwhile, by any thread."""

    log: Path
    began: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    _process: "subprocess.Popen[bytes] | None" = field(default=None)
    _known: int = field(default=0)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Pace":
        with self.log.open("wb") as log:
            words = [sys.executable, "-S", "-c", _WORKER]
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=60)

    def _read(self) -> None:
        with self._reading, self.log.open("rb") as log:
            log.seek(self._known)
            whole = log.read().rpartition(b"\n")[0]
            for line in whole.splitlines():
                began, ended = json.loads(line)
                self.took.append(ended - began)
                self.began.append(began)
            self._known += len(whole) + bool(whole)

    def limit(self, seconds: float, since: float) -> float:
        """The moment by which something must have happened that has so many seconds, as it looks now."""
        return since + seconds * self.slowness(since, time.monotonic())

    def slowness(self, begin: float, end: float) -> float:
        """How many times as long as usual everything took meanwhile; 1 where the machine was as it should be."""
        if not self.began or self.began[-1] < end:
            self._read()
        first, last = max(0, bisect_left(self.began, begin) - 1), bisect_right(self.began, end)
        taken = self.took[first:last]
        return max(1.0, sum(taken) / len(taken) / NEEDED / USUAL) if taken else 1.0

    def __str__(self) -> str:
        self._read()
        if not self.took:
            return "the machine's pace was not taken"
        ordered = sorted(self.took)
        middle, high = (ordered[int(len(ordered) * part)] / NEEDED for part in (0.5, 0.99))
        return f"work took {middle:.1f} times the processor's time it needed, {high:.1f} times at p99"
