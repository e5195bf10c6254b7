"""Under constant load no change of a service costs one request: `wrk` counts them, inside by name and outside at once.

A server that closes a connection between two requests meets a request that is on its way; `wrk` counts that as failed,
and rightly. So the demo image's server says `Connection: close` with its last answers, and `wrk` then connects anew.
`make soak` runs the long form.
"""

from pathlib import Path

import pytest
from names_asked import SLEEP, askers, network, service, update
from outside import await_served, await_tasks, cli, eventually
from under_load import PAUSE, load

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

PORT = 8085
HEALTH = ("--health-cmd", "wget -q -O /dev/null http://127.0.0.1/", "--health-interval", "1s", "--health-start-period",
          "30s", "--health-start-interval", "100ms", "--health-timeout", "10s")  # fmt: skip
"""Tasks of a service with a check serve once it succeeds. `test_stacks_rolling.py` does without."""
SHORT, LONG = (4, 1, 3), (8, 1, 5, 2, 8, 3, 6, 1, 4, 7, 2, 8, 1, 3, 5, 4, 8, 2, 6, 3)


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
