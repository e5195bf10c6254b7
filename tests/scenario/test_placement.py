"""Nodes change under running tasks, and one is lost: where tasks go, what users are told, who has which address."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from names_asked import IMAGE, SLEEP, askers, network, service
from outside import TaskSeen, Trickle, await_tasks, cli, containers, drift, eventually, start_service, tasks_of

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

ADDRESS = "10.99.0.50"


@contextmanager
def labelled(lab: Lab, label: str, *names: str) -> Iterator[None]:
    """Nodes with a label, until the block ends."""
    for name in names:
        cli(lab.nodes[0], "docker", "node", "update", "--label-add", label, name)
    try:
        yield
    finally:
        for name in names:
            node = lab.nodes[0].api("GET", f"/nodes/{name}")
            spec = node["Spec"] | {"Labels": {}}
            lab.nodes[0].api("POST", f"/nodes/{node['ID']}/update?version={node['Version']['Index']}", spec)


@contextmanager
def short_heartbeat(lab: Lab) -> Iterator[None]:
    """A node is missed after three seconds instead of fifteen."""
    cli(lab.nodes[0], "docker", "swarm", "update", "--dispatcher-heartbeat", "1s")
    try:
        yield
    finally:
        cli(lab.nodes[0], "docker", "swarm", "update", "--dispatcher-heartbeat", "5s")


def test_task_whose_node_lost_its_label_moves_and_nobody_notices(lab: Lab) -> None:
    first = lab.nodes[0]
    with labelled(lab, "edge=yes", "n2", "n3"):
        tasks = start_service(lab, "--constraint", "node.labels.edge==yes", name="web", replicas=2)
        assert sorted(task.node for task in tasks) == ["n2", "n3"]
        stays = next(task for task in tasks if task.node == "n2")
        with Trickle.to_all(lab) as trickle:
            time.sleep(0.2)
            cli(first, "docker", "node", "update", "--label-rm", "edge", "n3")
            moved = eventually(lambda: _on(lab, "web", ["n2", "n2"]), 20)
            time.sleep(0.3)
        assert trickle.failed == []
        assert len(trickle.tries) > 100
        assert stays.id in moved
        told = cli(first, "docker", "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "web")
        (line,) = [line for line in told.splitlines() if line.startswith("Rejected")]
        assert line.endswith('"assigned node no longer meets constraints"')


def test_static_address_follows_its_service_off_a_lost_node_and_has_one_owner_when_that_is_back(lab: Lab) -> None:
    network(lab, "back", "--subnet", "10.99.0.0/24")
    service(lab, "test", "--network", "back", "--constraint", "node.hostname==n1", command=SLEEP)
    service(lab, "db", "--network", f"name=back,driver-opt=ip={ADDRESS}", "--constraint", "node.role==worker",
            command=(IMAGE,))  # fmt: skip
    (test,), (old,) = askers(lab, "test"), await_tasks(lab, "db", 1)
    assert old.addresses == {ADDRESS}
    assert {answer.host for answer in test.curl(ADDRESS, 2)} == {old.host}
    lost = lab.node(old.node)
    (remains,) = containers(lost)
    with short_heartbeat(lab):
        lost.kill_daemon()
        try:
            new = eventually(lambda: _successor(lab, "db", old), 20)
            assert new.addresses == {ADDRESS}
            assert new.node not in (old.node, "n1")
            assert {answer.host for answer in eventually(lambda: test.curl(ADDRESS, 2))} == {new.host}
            assert list(containers(lost)) == [remains]
        finally:
            lab.restart_daemon(lost.name)
            lab.await_ready()
    eventually(lambda: _assert_stopped(lab, lost.name, remains), 20)
    assert {answer.host for answer in test.curl(ADDRESS, 5)} == {new.host}
    eventually(lambda: _assert_no_drift(lab))


def _on(lab: Lab, name: str, nodes: list[str]) -> set[str]:
    running = [task for task in tasks_of(lab, name) if task.state == task.desired == "running"]
    assert sorted(task.node for task in running) == nodes
    return {task.id for task in running}


def _successor(lab: Lab, name: str, old: TaskSeen) -> TaskSeen:
    seen = tasks_of(lab, name)
    new = [task for task in seen if task.state == task.desired == "running" and task.id != old.id]
    assert len(new) == 1, seen
    return new[0]


def _assert_stopped(lab: Lab, name: str, container: str) -> None:
    assert not containers(lab.node(name)).get(container)


def _assert_no_drift(lab: Lab) -> None:
    assert {node.name: drift(node) for node in lab.nodes} == {node.name: [] for node in lab.nodes}


def test_host_port_that_a_plain_container_has_sends_the_task_elsewhere(lab: Lab) -> None:
    first, second, third = lab.nodes
    for node in (second, third):
        cli(node, "docker", "run", "--detach", "--name", "holder", "--publish", "8094:80", IMAGE)
    create = "docker service create --detach --name web --publish mode=host,published=8094,target=80"
    cli(first, *create.split(), "--constraint", "node.hostname!=n1", IMAGE)
    eventually(lambda: _assert_waits(lab, "host-mode port already in use on 2 nodes"), 10)
    cli(third, "docker", "rm", "--force", "holder")
    (task,) = await_tasks(lab, "web", 1)
    assert task.node == "n3"
    cli(second, "docker", "rm", "--force", "holder")


def _assert_waits(lab: Lab, why: str) -> None:
    said = cli(lab.nodes[0], "docker", "service", "ps", "--no-trunc", "--format", "{{.Error}}", "web")
    assert why in said
