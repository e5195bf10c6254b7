"""What it costs to be watched: a client's requests through a node that counts, tells each connection and is scraped,
against the same through a node that does none of it, to the same task.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import cost, rig
from bench.mesh import requests, stream
from bench.report import alternate, compare
from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

ROUNDS = 9
WATCHED, ALONE, WATCHED_AT, ALONE_AT = "n2", "n3", "198.51.100.12", "198.51.100.13"
PORT = 8092
GOAL = "goal: 0.97"
METRICS = "while curl -sf -o /dev/null http://127.0.0.1:2378/metrics; do sleep 1; done"
UNTIL_WE_HANG_UP = '"$@" & read -r; kill $!'
"""A signal would reach only the one who entered the node, not whom it started there."""
PROGRAM = str(Path(sys.executable).with_name("hivemesh"))


@contextmanager
def watching(node: Node) -> Iterator[None]:
    """Read its flow log and its counters, and scrape it each second."""
    readers = [
        subprocess.Popen(
            node.command(["bash", "-c", UNTIL_WE_HANG_UP, command[0], *command]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for command in ([PROGRAM, "flows", "-f", "--json"], [PROGRAM, "top", "--json"], ["bash", "-c", METRICS])
    ]
    try:
        yield
    finally:
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.close()
            reader.wait()


def main(bed: Lab) -> None:
    """Prints a table each for keep-alive, a connection per request and one stream; then what the first two cost."""
    rig.create(bed, rig.service("watched", 1, [(PORT, 80, "ingress")], "n1"))
    rig.await_running(bed, "watched", 1)
    bed.restart_daemon(ALONE, options=("--count", "off", "--web", "off"))
    rig.allow_many_connections(bed.client)
    for name in (WATCHED, ALONE):
        rig.allow_many_connections(bed.node(name), ("ip", "netns", "exec", "ingress_sbox"))
    urls = {"off": f"http://{ALONE_AT}:{PORT}", "on": f"http://{WATCHED_AT}:{PORT}"}
    kept, fresh = partial(requests, close=False), partial(requests, close=True)
    with watching(bed.node(WATCHED)):
        for title, unit, digits, way in (
            ("keep-alive", "requests/s", 0, kept),
            ("a connection per request", "requests/s", 0, fresh),
            ("one TCP stream", "Gbit/s", 2, stream),
        ):
            ways = {name: way(bed.client, url) for name, url in urls.items()}
            compare(f"{title}: counters, flow log and scraper", unit, alternate(ways, ROUNDS), GOAL, digits)
        cost.pin(bed, rig.running(bed, "watched"), max(os.sched_getaffinity(0)))
        cost.compare(
            "counters, flow log and scraper",
            {
                "off": cost.Way(machine=bed.client, host=ALONE_AT, port=PORT),
                "on": cost.Way(machine=bed.client, host=WATCHED_AT, port=PORT),
            },
            GOAL,
        )
    rig.remove(bed, "watched")
    bed.restart_daemon(ALONE)
