"""How long a service of many tasks takes from the call to the last task that runs, with plain processes as tasks."""

import time

from bench import rig
from bench.report import facts, spread
from hivemesh.lab.lab import Lab

RUNS = 5
REPLICAS = 60
PORT = 8093
NAME = "many"


def run(bed: Lab, replicas: int) -> tuple[float, float]:
    """Seconds of the call itself, and until all tasks run (they do once they listen on the published port)."""
    begun = time.monotonic()
    rig.create(bed, rig.service(NAME, replicas, [(PORT, 80, "ingress")]))
    answered = time.monotonic()
    rig.await_running(bed, NAME, replicas)
    over = time.monotonic()
    rig.remove(bed, NAME)
    return answered - begun, over - begun


def main(bed: Lab, *, runs: int = RUNS, replicas: int = REPLICAS) -> None:
    """Prints seconds."""
    run(bed, len(bed.nodes))  # the first tasks of a node find nothing ready yet
    found = [run(bed, replicas) for _ in range(runs)]
    facts(
        f"`service create` with {replicas} replicas on {len(bed.nodes)} nodes",
        ("until", "seconds"),
        [
            ("the call is answered", spread([call for call, _ in found], 3)),
            ("all tasks run", spread([over for _, over in found])),
            ("tasks a second", spread([replicas / over for _, over in found], 1)),
        ],
        "the nodes share this machine; a task is a sandbox with its network, and a process",
    )
