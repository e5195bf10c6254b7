"""Under constant load no change of a service costs one request: `wrk` counts them, inside by name and outside at once.

A server that closes a connection between two requests meets a request that is on its way; `wrk` counts that as failed,
and rightly. So the demo image's server says `Connection: close` with its last answers, and `wrk` then connects anew.
`make soak` runs the long form.
"""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from names_asked import SLEEP, askers, network, service, update
from outside import await_served, await_tasks, cli, eventually

from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine, kill

pytestmark = pytest.mark.scenario

PORT = 8085
CONNECTIONS = 4
PAUSE = "function delay() return 10 end\n"
"""Milliseconds between a connection's requests: constant load, no table of a kernel fills with ended connections."""
HEALTH = ("--health-cmd", "wget -q -O /dev/null http://127.0.0.1/", "--health-interval", "1s", "--health-start-period",
          "30s", "--health-start-interval", "100ms", "--health-timeout", "10s")  # fmt: skip
"""A process that has begun does not listen yet; without a check its task serves from that moment, and may refuse."""
SHORT, LONG = (4, 1, 3), (8, 1, 5, 2, 8, 3, 6, 1, 4, 7, 2, 8, 1, 3, 5, 4, 8, 2, 6, 3)


@contextmanager
def load(machine: Machine, script: Path, url: str, *options: str, enter: tuple[str, ...] = ()) -> Iterator[None]:
    """Requests all the time; on leaving, not one of them may have failed."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", "-d3600", "--timeout", "15s", "-s", str(script), *options, url]
    with subprocess.Popen(machine.command([*enter, *words]), stdout=subprocess.PIPE, text=True) as asking:
        try:
            yield
        finally:
            time.sleep(0.3)
            kill([process for process in machine.processes() if process.arguments == tuple(words)], signal.SIGINT)
            out, _ = asking.communicate(timeout=20)
    done = re.search(r"(\d+) requests in", out)
    assert done, out
    assert int(done[1]) > 100, out
    assert "Socket errors" not in out, f"{' '.join(words)}: {out}"
    assert "Non-2xx" not in out, f"{url}: {out}"


@pytest.mark.parametrize(
    ("scalings", "restarts"), [(SHORT, 1), pytest.param(LONG, 3, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_scaling_and_restarting_under_load_fails_no_request(
    lab: Lab, tmp_path: Path, scalings: tuple[int, ...], restarts: int
) -> None:
    network(lab, "mynet")
    service(
        lab, "web", "--network", "mynet", "--publish", f"{PORT}:80", "--stop-grace-period", "10s", *HEALTH, replicas=2
    )
    service(lab, "test", "--network", "mynet", command=SLEEP)
    askers(lab, "web", 2)
    (test,) = askers(lab, "test")
    await_served(lab, 2, PORT)
    (vip,) = test.names("web")
    script = tmp_path / "pause.lua"
    script.write_text(PAUSE)
    sandbox = ("ip", "netns", "exec", test.task.id[:12])
    mesh = f"http://{lab.nodes[2].spec.v4.ip}:{PORT}/"
    close = ("-H", "Connection: close")
    with (
        load(test.node, script, f"http://{vip}/", enter=sandbox),
        load(test.node, script, f"http://{vip}/", *close, enter=sandbox),
        load(lab.client, script, mesh),
        load(lab.client, script, mesh, *close),
    ):
        for count in scalings:
            cli(lab.nodes[0], "docker", "service", "scale", "--detach", f"web={count}")
            await_tasks(lab, "web", count, 60)
        for _ in range(restarts):
            before = {task.id for task in await_tasks(lab, "web", scalings[-1])}
            update(lab, "web", "--force")
            eventually(lambda before=before: _replaced(lab, before, scalings[-1]), 90)  # type: ignore[misc]


def _replaced(lab: Lab, before: set[str], count: int) -> None:
    running = await_tasks(lab, "web", count, 0)
    assert before.isdisjoint(task.id for task in running)
