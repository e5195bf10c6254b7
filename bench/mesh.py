"""What the routing mesh costs: client outside -> n1 -> task on n2, against the same client -> the task's host port."""

import os
import re
from collections.abc import Callable
from functools import partial

from bench import cost, rig
from bench.ahead import FIRST
from bench.report import alternate, compare
from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine

ROUNDS = 7
SECONDS = 2
CONNECTIONS = 16
STREAM = 2_000_000_000  # bytes
NODE_1, NODE_2 = "198.51.100.11", "198.51.100.12"


def requests(machine: Machine, url: str, *, close: bool, inside: tuple[str, ...] = ()) -> Callable[[], float]:
    """Requests per second with `CONNECTIONS` clients, each keeping its connection or making one per request."""
    header = ("-H", "Connection: close") if close else ()
    command = (*inside, *FIRST, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", *header, url)

    def run() -> float:
        said = machine.exec(*command).stdout
        found = re.search(r"Requests/sec:\s+([\d.]+)", said)
        errors = re.search(r"Socket errors:.*|Non-2xx.*", said)
        if not found or (errors and not close):
            raise RuntimeError(f"wrk on {url}: {said}")
        return float(found[1])

    return run


def stream(machine: Machine, url: str, inside: tuple[str, ...] = ()) -> Callable[[], float]:
    """Gbit/s of one TCP connection."""
    command = (*inside, *FIRST, "curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}", f"{url}/bytes/{STREAM}")
    return lambda: float(machine.exec(*command).stdout) * 8 / 1e9


def main(bed: Lab) -> None:
    """Prints a table each for keep-alive, a connection per request and one stream; then what the first two cost."""
    rig.create(bed, rig.service("mesh", 1, [(8090, 80, "ingress")], "n2"))
    rig.create(bed, rig.service("host", 1, [(8091, 80, "host")], "n2"))
    rig.await_running(bed, "mesh", 1)
    rig.await_running(bed, "host", 1)
    client, sandbox = bed.client, ("ip", "netns", "exec", "ingress_sbox")
    host, mesh = f"http://{NODE_2}:8091", f"http://{NODE_1}:8090"
    direct = f"http://{rig.address_on_ingress(rig.running(bed, 'mesh')[0])}:8090"
    n1 = bed.node("n1")
    rig.allow_many_connections(client)
    rig.allow_many_connections(n1, sandbox)
    kept, fresh = partial(requests, close=False), partial(requests, close=True)
    for title, unit, digits, way, goal in (
        ("keep-alive", "requests/s", 0, kept, "0.56 (Swarm with IPVS: 0.46)"),
        ("a connection per request", "requests/s", 0, fresh, "0.60 (Swarm with IPVS: 0.56)"),
        ("one TCP stream", "Gbit/s", 2, stream, "prototype: 0.66"),
    ):
        ways = {
            "client -> host port of n2": way(client, host),
            "client -> n1 -> mesh -> task on n2": way(client, mesh),
            "n1's ingress_sbox -> overlay -> task on n2": way(n1, direct, inside=sandbox),
        }
        compare(f"{title}: through the mesh", unit, alternate(ways, ROUNDS), f"goal of the second row: {goal}", digits)
    cost.pin(bed, [*rig.running(bed, "mesh"), *rig.running(bed, "host")], max(os.sched_getaffinity(0)))
    cost.compare(
        "through the mesh",
        {
            "client -> host port of n2": cost.Way(machine=client, host=NODE_2, port=8091),
            "client -> n1 -> mesh -> task on n2": cost.Way(machine=client, host=NODE_1, port=8090),
        },
    )
    rig.remove(bed, "mesh")
    rig.remove(bed, "host")
