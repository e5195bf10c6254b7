"""Memory and idle processor time of the daemons, node by node."""

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


def main(bed: Lab, state: str) -> None:
    rows = []
    for node in bed.nodes:
        processes = daemons(node)
        before = {p.pid: cpu(p.pid) for p in processes}
        time.sleep(IDLE)
        used = sum(cpu(p.pid) - before[p.pid] for p in processes)
        names = ", ".join(
            sorted(
                os.path.basename(p.arguments[1] if "python" in p.arguments[0] else p.arguments[0]) for p in processes
            )
        )
        rows.append((node.name, names, f"{sum(pss(p.pid) for p in processes):.1f}", f"{used / IDLE * 100:.2f}"))
    facts(f"daemons, {state}", ("node", "processes", "PSS MiB", "% of a core"), rows, "goal per worker: 66 MiB, 0.5 %")
