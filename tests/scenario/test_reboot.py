"""A node's machine loses its power: it comes back by itself, and nothing that lies on its disk is in the way."""

from collections.abc import Iterator

import pytest
from outside import (
    IMAGE,
    SERVICE,
    Trickle,
    await_served,
    await_tasks,
    cli,
    containers,
    curl,
    drift,
    eventually,
    start_service,
    tasks_of,
)

from hivemesh.lab.lab import Lab, LabSettings
from labs import a_lab

pytestmark = [pytest.mark.scenario, pytest.mark.soak]


@pytest.fixture(scope="module")
def _two() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=2)) as lab:
        yield lab


@pytest.fixture
def two(_two: Lab) -> Lab:
    """On Podman; n1 manages. Leave it so."""
    _two.await_ready()
    _two.reset()
    return _two


@pytest.mark.parametrize("name", ["n1", "n2"])
def test_a_node_that_lost_its_power_is_back_by_itself_with_tasks_names_and_containers(two: Lab, name: str) -> None:
    node, other = two.node(name), two.nodes[name == "n1"]
    cli(two.nodes[0], "docker", "network", "create", "--driver", "overlay", "--attachable", "back")
    start_service(two, "--network", "back", replicas=4)
    cli(node, "docker", "run", "--detach", "--name", "kept", "--restart", "always", "--network", "back", IMAGE)
    here, there = _running(two, name), _running(two, other.name)
    with Trickle(two.client, [str(other.spec.v4.ip)]) as trickle:
        two.reboot(name)
        two.await_ready()
        eventually(lambda: _assert_ended(two, here), 30)
        await_tasks(two, SERVICE, 4, timeout=60)
        await_served(two, 4, timeout=20)
    hosts = trickle.hosts()
    assert hosts, "the other one went on"
    assert _running(two, other.name) >= there
    for address in (node.spec.v4.ip, node.spec.v6.ip, other.spec.v4.ip):
        assert len({answer.host for answer in curl(two.client, str(address), count=8)}) == 4
    eventually(lambda: _assert_whole(two), 20)
    assert cli(node, "docker", "inspect", "--format", "{{.State.Running}}", "kept").strip() == "true"
    assert "Name" in cli(node, "docker", "exec", "kept", "nslookup", SERVICE)
    living = [each for each, process in containers(node).items() if process]
    assert len(living) == len(_running(two, name)) + 1, "and no other container runs"
    cli(node, "docker", "rm", "--force", "kept")
    cli(two.nodes[0], "hivemesh", "service", "scale", "--detach", f"{SERVICE}=6")
    await_tasks(two, SERVICE, 6)


def _running(lab: Lab, name: str) -> set[str]:
    return {task.id for task in tasks_of(lab, SERVICE) if task.node == name and task.state == task.desired == "running"}


def _assert_ended(lab: Lab, tasks: set[str]) -> None:
    assert not tasks & {task.id for task in tasks_of(lab, SERVICE) if task.state == "running"}


def _assert_whole(lab: Lab) -> None:
    for node in lab.nodes:
        assert drift(node) == []
