"""Memory and idle processor time of the daemons, node by node."""

import contextlib
import os
import time

from bench.report import facts
from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Process
from hivemesh.lab.node import Node

IDLE = 10.0  # seconds
QUIET = 75.0  # seconds until Podman's service has left


def daemons(node: Node) -> list[Process]:
    """Ours: not containers, nor the shims that hold them."""
    return [p for p in node.processes() if not p.runs("conmon") and p.arguments[0]]


def pss(pid: int) -> float:
    """MiB of memory, what is shared counted by its part (/proc/PID/smaps_rollup)."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024


def cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(processes: list[Process]) -> dict[int, tuple[float, float]]:
    """Seconds of processor time and MiB of memory by process; one that has ended meanwhile is left out."""
    found = {}
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[process.pid] = cpu(process.pid), pss(process.pid)
    return found


def main(bed: Lab, state: str) -> None:
    rows = []
    for node in bed.nodes:
        processes = daemons(node)
        before = measured(processes)
        time.sleep(IDLE)
        after = measured([p for p in processes if p.pid in before])
        used = sum(seconds - before[pid][0] for pid, (seconds, _) in after.items())
        names = ", ".join(
            sorted(
                os.path.basename(p.arguments[1] if "python" in p.arguments[0] else p.arguments[0])
                for p in processes
                if p.pid in after
            )
        )
        rows.append(
            (node.name, names, f"{sum(memory for _, memory in after.values()):.1f}", f"{used / IDLE * 100:.2f}")
        )
    facts(f"daemons, {state}", ("node", "processes", "PSS MiB", "% of a core"), rows, "goal per worker: 66 MiB, 0.5 %")
