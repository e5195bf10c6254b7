"""How soon a new task is known by name, and balanced to, on the last of three nodes: from the start of its process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from bench import rig
from bench.report import facts, percentile, spread
from hivemesh.lab.lab import Lab

STARTS = 100
PATIENCE = 10.0
"""Seconds after the manager says that the task runs."""
NETWORK, SERVICE, WATCHERS = "names", "named", "watchers"
PROGRAM = Path(__file__).with_name("sightings.py")
GOAL = 0.150


class Watch:
    """The program that asks, as a child."""

    def __init__(self, vip: str, namespaces: list[str]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(PROGRAM), SERVICE, vip, *namespaces],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def cut(self) -> dict[str, dict[str, dict[str, float]]]:
        """What was first seen since the last cut."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        found: dict[str, dict[str, dict[str, float]]] = json.loads(_line(self._child.stdout))
        return found

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


def _line(stream: IO[str]) -> str:
    line = stream.readline()
    if not line:
        raise RuntimeError(f"{PROGRAM.name} has ended; what it wrote is above")
    return line


def processes(bed: Lab) -> dict[int, float]:
    """The tasks' processes of all nodes, and when each began in seconds since the machine's start.

    The kernel tells that in hundredths, cut off: up to 10 ms too early, so that what is measured is never flattered.
    """
    found = {}
    for node in bed.nodes:
        for process in node.processes():
            if process.runs("whoami"):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                found[process.pid] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return found


def main(bed: Lab) -> None:
    """Prints the seconds from a process's start until all three nodes know its task. Needs the process engine."""
    rig.network(bed, NETWORK)
    watchers = rig.on_network(rig.service(WATCHERS, 1, []), NETWORK)
    watchers["Mode"] = {"Global": {}}
    rig.create(bed, watchers)
    rig.create(bed, rig.on_network(rig.service(SERVICE, 1, []), NETWORK))
    rig.await_running(bed, WATCHERS, len(bed.nodes))
    rig.await_running(bed, SERVICE, 1)
    namespaces = [
        f"/proc/{rig.node_of(bed, task).init_pid()}/root/run/netns/{rig.sandbox(task)}"
        for task in rig.running(bed, WATCHERS)
    ]
    watch = Watch(rig.vip(bed, SERVICE), namespaces)
    took: dict[str, list[float]] = {"name": [], "backend": []}
    try:
        time.sleep(1)
        for _ in range(STARTS):
            for what, seconds in _start_one(bed, watch).items():
                took[what].append(seconds)
    finally:
        watch.close()
    rows = [
        (what, spread(figures, 3), f"{percentile(figures, 0.95):.3f}", f"{percentile(figures, 0.99):.3f}")
        for what, figures in (*took.items(), ("both", [max(pair) for pair in zip(*took.values(), strict=True)]))
    ]
    facts(
        f"from a task's start until the last of three nodes knows it, {STARTS} starts",
        ("what", "seconds", "p95", "p99"),
        rows,
        f"goal for both: p99 {GOAL} s",
    )
    for name in (SERVICE, WATCHERS):
        rig.remove(bed, name)
    rig.remove_network(bed, NETWORK)


def _start_one(bed: Lab, watch: Watch) -> dict[str, float]:
    """Scale from one to two and back: seconds until the last namespace saw the new task's name, and was led to it."""
    before = {task["ID"] for task in rig.running(bed, SERVICE)}
    known = processes(bed)
    watch.cut()
    rig.scale(bed, SERVICE, 2)
    rig.await_running(bed, SERVICE, 2)
    began = _began(bed, known)
    (task,) = (task for task in rig.running(bed, SERVICE) if task["ID"] not in before)
    address = rig.address_on(task, NETWORK)
    first: dict[tuple[str, str], float] = {}
    until = time.monotonic() + PATIENCE
    while True:
        seen = watch.cut()
        for where, found in seen.items():
            for what, at in found.items():
                if address in at:
                    first.setdefault((where, what), at[address])
        if len(first) == sum(map(len, seen.values())):
            break
        if time.monotonic() > until:
            raise RuntimeError(f"{address} is known only so far: {sorted(first)}")
        time.sleep(0.05)
    rig.scale(bed, SERVICE, 1)
    await_gone(bed)
    return {kind: max(at for (_, what), at in first.items() if what == kind) - began for kind in ("name", "backend")}


def _began(bed: Lab, known: dict[int, float], timeout: float = 5) -> float:
    """When the process that was not known began. It can be seen a moment after its task runs: it execs on the way."""
    until = time.monotonic() + timeout
    while not (found := [when for pid, when in processes(bed).items() if pid not in known]):
        if time.monotonic() > until:
            raise RuntimeError(f"no new process of {SERVICE} is seen")
        time.sleep(0.01)
    (began,) = found
    return began


def await_gone(bed: Lab, timeout: float = 30) -> None:
    """Until the task that is one too many has ended."""
    until = time.monotonic() + timeout
    while len(_alive(bed)) > 1:
        if time.monotonic() > until:
            raise RuntimeError(f"{SERVICE} does not get back to one task")
        time.sleep(0.02)


def _alive(bed: Lab) -> list[dict[str, Any]]:
    identifier = bed.nodes[0].api("GET", f"/services/{SERVICE}")["ID"]
    return [
        task
        for task in bed.nodes[0].api("GET", "/tasks")
        if task["ServiceID"] == identifier and task["Status"]["State"] in ("preparing", "starting", "running")
    ]
