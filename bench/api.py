"""What the API costs a manager: services listed per second of one processor.

The client waits for each answer, and what the daemon used of its processor meanwhile is read from the kernel, so other
programs of the machine, and the client, do not count.
"""

import os
import time
from pathlib import Path

from bench import rig
from bench.report import facts, spread
from hivemesh.lab import http
from hivemesh.lab.lab import Lab

SERVICES = 500
ROUNDS, REQUESTS = 8, 20


def main(bed: Lab, *, services: int = SERVICES, rounds: int = ROUNDS, requests: int = REQUESTS) -> None:
    """Prints services a second, of the daemon's processor time and of the clock."""
    manager = bed.nodes[0]
    daemon = manager.daemon()
    assert daemon is not None
    names = [f"listed-{number}" for number in range(services)]
    begun = time.monotonic()
    for name in names:
        rig.create(bed, rig.service(name, 0, []))
    creation = time.monotonic() - begun
    processors = os.sched_getaffinity(daemon.pid)
    os.sched_setaffinity(daemon.pid, {max(processors)})
    of_processor, of_clock = [], []
    try:
        for _ in range(rounds):
            used, begun = _processor_time(daemon.pid), time.monotonic()
            for _ in range(requests):
                found = http.request(manager.socket, "GET", "/services")
            of_clock.append(requests * len(found) / (time.monotonic() - begun))
            of_processor.append(requests * len(found) / (_processor_time(daemon.pid) - used))
        if len(found) != services:
            raise RuntimeError(f"{len(found)} services are listed, not {services}")
    finally:
        os.sched_setaffinity(daemon.pid, processors)
    facts(
        f"`service ls` with {services} services",
        ("what", "services a second"),
        [
            ("listed, per second of one processor", spread(of_processor, 0)),
            ("listed, to a client that reads them", spread(of_clock, 0)),
            ("created one after the other", f"{services / creation:,.0f}"),
        ],
    )
    for name in names:
        manager.api("DELETE", f"/services/{name}")


def _processor_time(pid: int) -> float:
    """Seconds that the threads of a process have run, in nanoseconds' steps (sched-stats in the kernel's documents)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
