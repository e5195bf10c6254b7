"""A node that the managers do not hear any more: others take over, it goes on by itself, and gives up what it lost."""

from collections.abc import Iterator

import pytest
from outside import (
    SERVICE,
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

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

CUT = (
    "add table inet cut; "
    "add chain inet cut in { type filter hook input priority -400; }; "
    "add chain inet cut out { type filter hook output priority -400; }; "
    "add rule inet cut in tcp sport 2377 drop; "
    "add rule inet cut out tcp dport 2377 drop"
)


@pytest.fixture
def impatient(lab: Lab) -> Iterator[Lab]:
    """A lab that misses its nodes after three seconds."""
    cli(lab.nodes[0], "docker", "swarm", "update", "--dispatcher-heartbeat", "1s")
    try:
        yield lab
    finally:
        lab.node("n3").exec("nft", "delete table inet cut", check=False)
        cli(lab.nodes[0], "docker", "swarm", "update", "--dispatcher-heartbeat", "5s")
        lab.await_ready()


def test_cut_off_node_serves_on_is_replaced_and_gives_up_what_was_replaced(impatient: Lab) -> None:
    lab = impatient
    first, cut = lab.nodes[0], lab.node("n3")
    before = start_service(lab, replicas=3)
    (old,) = [task for task in before if task.node == "n3"]
    here = containers(cut)
    cut.exec("nft", CUT)
    eventually(lambda: _assert_state(lab, "n3", "down"), 15)
    now = eventually(lambda: _without(lab, "n3"), 15)
    await_served(lab, 3)
    asked = curl(lab.client, str(first.spec.v4.ip), count=9)
    assert len({answer.host for answer in asked}) == 3
    assert containers(cut) == here  # it knows nothing of that
    assert len({answer.host for answer in curl(lab.client, str(cut.spec.v4.ip), count=3)}) >= 1
    assert drift(cut) == []
    cut.exec("nft", "delete table inet cut")
    eventually(lambda: _assert_state(lab, "n3", "ready"), 15)
    eventually(lambda: _assert_ended(cut, here), 15)
    after = await_tasks(lab, SERVICE, 3)
    assert {task.id for task in after} == now
    assert old.id not in now
    assert {answer.host for answer in curl(lab.client, str(cut.spec.v4.ip), count=9)} == {a.host for a in asked}
    eventually(lambda: _assert_even(lab))


def _assert_state(lab: Lab, name: str, state: str) -> None:
    states = {n["Description"]["Hostname"]: n["Status"]["State"] for n in lab.nodes[0].api("GET", "/nodes")}
    assert states[name] == state


def _without(lab: Lab, name: str) -> set[str]:
    """The three tasks that run and should, none of them there."""
    running = [task for task in tasks_of(lab, SERVICE) if task.state == task.desired == "running"]
    assert len(running) == 3
    assert name not in {task.node for task in running}
    return {task.id for task in running}


def _assert_ended(node: Node, those: dict[str, int]) -> None:
    """They may be there still, as the history of their slots; none runs."""
    now = containers(node)
    assert [identifier for identifier in those if now.get(identifier)] == []


def _assert_even(lab: Lab) -> None:
    for node in lab.nodes:
        assert drift(node) == []
