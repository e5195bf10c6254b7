"""How soon a change has reached every node: seen by a client that asks all nodes all the time."""

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import rig
from bench.report import facts, spread
from hivemesh.lab.lab import Lab

RUNS = 8
WATCH = 3.0  # seconds
SETTLE = 0.5
PORT = 8092
PROBE = Path(__file__).with_name("probe.py")


def watch(bed: Lab) -> dict[str, dict[str, list[float]]]:
    targets = [f"{node.spec.v4.ip}:{PORT}" for node in bed.nodes]
    said = bed.client.exec(sys.executable, str(PROBE), str(WATCH), *targets)
    found: dict[str, dict[str, list[float]]] = json.loads(said.stdout)
    return found


def change(bed: Lab, replicas: int) -> tuple[float, dict[str, dict[str, list[float]]]]:
    """Scale while the client watches; the moment of the call, and what the client saw."""
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, bed)
        time.sleep(SETTLE)
        called = time.time()
        rig.scale(bed, "conv", replicas)
        return called, watching.result()


def main(bed: Lab) -> None:
    """Prints seconds from the API call to the last node."""
    rig.create(bed, rig.service("conv", 3, [(PORT, 80, "ingress")]))
    rig.await_running(bed, "conv", 3)
    up: list[float] = []
    down: list[float] = []
    failures = 0
    for _ in range(RUNS):
        called, seen = change(bed, 4)
        up.append(max(_newest(answers) for answers in seen.values()) - called)
        failures += sum("" in answers for answers in seen.values())
        rig.await_running(bed, "conv", 4)
        called, seen = change(bed, 3)
        left = {rig_name(task) for task in rig.running(bed, "conv")}
        down.append(max(_last_of_gone(answers, left) for answers in seen.values()) - called)
        failures += sum("" in answers for answers in seen.values())
    facts(
        "`service scale` to the last of three nodes",
        ("change", "seconds", "median"),
        [
            ("3 -> 4: every node has sent a client to the new task", spread(up, 3), f"{statistics.median(up):.3f}"),
            ("4 -> 3: no node sends a client to the old task", spread(down, 3), f"{statistics.median(down):.3f}"),
            ("clients without an answer", str(failures), ""),
        ],
        "real Swarm: 0.60 s up, 1.2 s down",
    )
    rig.remove(bed, "conv")


def rig_name(task: dict[str, Any]) -> str:
    """The host name a task's container has."""
    return str(task["Status"]["ContainerStatus"]["ContainerID"])[:12]


def _newest(answers: dict[str, list[float]]) -> float:
    return max(first for who, (first, _) in answers.items() if who)


def _last_of_gone(answers: dict[str, list[float]], left: set[str]) -> float:
    return max((last for who, (_, last) in answers.items() if who and who not in left), default=0.0)
