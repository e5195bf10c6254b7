"""Rolling updates while `wrk` asks through the mesh and by the virtual address: not one request may fail.

The tasks have no health check and take a moment to listen, as most servers do. `make soak` runs the long form.
"""

from contextlib import ExitStack
from pathlib import Path

import pytest
from names_asked import SLEEP, askers, network, service, update
from outside import await_served, await_tasks, cli, eventually
from under_load import PAUSE, load

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

PORT = 8086
SLOW = ("localhost/whoami", "sh", "-c", "sleep 0.3; exec /bin/whoami")
QUICKLY = ("--update-delay", "0s", "--update-monitor", "100ms")
ORDERS = ("stop-first", "start-first")


@pytest.mark.parametrize(
    ("replicas", "at_once", "rounds"),
    [(3, 2, 1), pytest.param(8, 3, 4, marks=pytest.mark.soak)],
    ids=["short", "long"],
)
def test_rolling_update_under_load_fails_no_request_in_either_order(
    lab: Lab, tmp_path: Path, replicas: int, at_once: int, rounds: int
) -> None:
    network(lab, "mynet")
    service(
        lab, "web", "--network", "mynet", "--publish", f"{PORT}:80", "--stop-grace-period", "10s",
        "--update-parallelism", str(at_once), *QUICKLY, replicas=replicas, command=SLOW,
    )  # fmt: skip
    service(lab, "test", "--network", "mynet", command=SLEEP)
    askers(lab, "web", replicas)
    (test,) = askers(lab, "test")
    await_served(lab, replicas, PORT)
    (vip,) = test.names("web")
    script = tmp_path / "pause.lua"
    script.write_text(PAUSE)
    sandbox = ("ip", "netns", "exec", test.task.id[:12])
    close = ("-H", "Connection: close")
    with ExitStack() as loads:
        for options in ((), close):
            loads.enter_context(load(test.node, script, f"http://{vip}/", *options, enter=sandbox))
            for node in lab.nodes:
                loads.enter_context(load(lab.client, script, f"http://{node.spec.v4.ip}:{PORT}/", *options))
        for number in range(rounds):
            for order in ORDERS:
                before = {task.id for task in await_tasks(lab, "web", replicas)}
                update(lab, "web", "--update-order", order, "--env-add", f"ROUND={number}{order}")
                eventually(lambda before=before: _replaced(lab, before, replicas), 120)  # type: ignore[misc]


def _replaced(lab: Lab, before: set[str], count: int) -> None:
    """All of them, and the update is over: its last word changes the service once more."""
    status = lab.nodes[0].api("GET", "/services/web").get("UpdateStatus", {})
    assert status.get("State") == "completed", status
    running = await_tasks(lab, "web", count, 0)
    assert before.isdisjoint(task.id for task in running)


def test_only_task_is_replaced_without_a_gap_by_one_that_is_slow_to_listen(lab: Lab, tmp_path: Path) -> None:
    """Start-first: the old one serves until the new one listens, not only until its process has begun."""
    service(lab, "web", "--publish", f"{PORT}:80", "--update-order", "start-first", *QUICKLY,
            "--stop-grace-period", "10s", command=SLOW)  # fmt: skip
    await_served(lab, 1, PORT)
    script = tmp_path / "pause.lua"
    script.write_text(PAUSE)
    url = f"http://{lab.nodes[2].spec.v4.ip}:{PORT}/"
    with load(lab.client, script, url, "-H", "Connection: close"):
        (before,) = await_tasks(lab, "web", 1)
        cli(lab.nodes[0], "docker", "service", "update", "--detach", "--quiet", "--force", "web")
        eventually(lambda: _replaced(lab, {before.id}, 1), 30)
