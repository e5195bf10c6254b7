"""What a request costs on different ways, where a busy machine hides it: everything on one processor, one at a time.

Rates on a machine that others use tell how busy those were. Here the client, the server and all that lies between take
turns on one processor, so that the time of a request is the sum of its steps. Batches of about a millisecond are timed,
and those that nobody disturbed count: the lowest fiftieth.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import rig
from bench.ahead import FIRST, prefer
from bench.report import facts, percentile
from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine, all_processes

SOURCE = Path(__file__).with_name("serial.c")
ROUNDS, BATCHES = 20, 60
SIZES = {"keep": 25, "close": 5}
UNDISTURBED = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From a machine, or one of its namespaces, to a server."""

    machine: Machine
    host: str
    port: int
    inside: Sequence[str] = ()


def pin(bed: Lab, tasks: Sequence[dict[str, Any]], processor: int) -> None:
    """Keep the processes of these tasks on one processor, ahead of others."""
    spaces = set()
    for task in tasks:
        init = rig.node_of(bed, task).init_pid()
        spaces.add(os.stat(f"/proc/{init}/root/run/netns/{rig.sandbox(task)}").st_ino)
    for process in all_processes():
        try:
            if os.stat(f"/proc/{process.pid}/ns/net").st_ino in spaces:
                os.sched_setaffinity(process.pid, {processor})
                prefer(process.pid)
        except OSError:
            continue  # it has ended meanwhile


@contextmanager
def client() -> Iterator[Path]:
    """The program that asks, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "serial")
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", str(program), str(SOURCE)], check=True)
        yield program


def compare(title: str, ways: Mapping[str, Way], goal: str = "") -> None:
    """Prints microseconds of each way, with keep-alive and with a connection per request. The servers are pinned."""
    processor = max(os.sched_getaffinity(0))
    with client() as program:
        for mode, what in (("keep", "keep-alive"), ("close", "a connection per request")):
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                    found[name] += _ask(program, ways[name], mode, processor)
            low = {name: percentile(figures, UNDISTURBED) for name, figures in found.items()}
            base = next(iter(low.values()))
            rows = [
                (name, f"{low[name]:.1f}", f"{percentile(found[name], 0.5):.1f}", f"{base / low[name]:.3f}")
                for name in ways
            ]
            facts(f"{title}: {what}, all on one processor", ("way", "us", "median", "first / this"), rows, goal)


def _ask(program: Path, way: Way, mode: str, processor: int) -> list[float]:
    command = [*FIRST, str(program), way.host, str(way.port), mode]
    said = way.machine.exec(*way.inside, *command, str(BATCHES), str(SIZES[mode]), str(processor)).stdout
    return [float(line) for line in said.split()]
