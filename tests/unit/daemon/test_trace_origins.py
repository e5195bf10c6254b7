"""Where a way begins that a manager is asked about."""

import ipaddress

import pytest

from hivemesh.daemon.tracing import origin
from hivemesh.model.errors import Invalid
from hivemesh.model.ids import NodeID, ServiceID, TaskID
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.wire.trace import Question


def a_node(number: int) -> Node:
    address = f"192.0.2.1{number}"
    return Node(
        id=NodeID(f"node{number}"), spec=NodeSpec(), addr=address, vtep=ipaddress.ip_address(address),
        description=NodeDescription(hostname=f"n{number}"),
    )  # fmt: skip


def a_task(slot: int, node: int, state: TaskState = TaskState.RUNNING) -> Task:
    return Task(
        id=TaskID(f"id-of-{slot}"), service_id=ServiceID("s"), service_name="web", slot=slot, spec=TaskSpec(),
        node_id=NodeID(f"node{node}"), status=TaskStatus(state=state),
    )  # fmt: skip


NODES = [a_node(1), a_node(2)]
TASKS = [a_task(1, 1), a_task(2, 2), a_task(3, 1, TaskState.FAILED)]


@pytest.mark.parametrize(
    ("source", "target", "node", "asked"),
    [
        ("web.2", "db:80", "node2", ("web.2", "db:80")),
        ("id-of-1", "db:80", "node1", ("id-of-1", "db:80")),
        ("", "n2:8080", "node2", ("", ":8080")),
        ("198.51.100.7", "n2:8080", "node2", ("", ":8080")),
        ("fd00::7", "192.0.2.11:8080", "node1", ("", ":8080")),
        ("", ":8080", None, ("", ":8080")),
        ("", "192.0.2.99:8080", None, ("", "192.0.2.99:8080")),
        ("", "n2", "node2", ("", "n2")),
        ("web.3", "db:80", None, ("web.3", "db:80")),
        ("a-container", "db:80", None, ("a-container", "db:80")),
    ],
)
def test_way_begins_where_its_task_runs_or_where_its_port_is_asked(
    source: str, target: str, node: str | None, asked: tuple[str, str]
) -> None:
    found, question = origin(TASKS, NODES, Question(source=source, target=target))
    assert (found, question.source, question.target) == (node, *asked)


@pytest.mark.parametrize(
    ("source", "target", "node", "asked", "sender"),
    [
        ("n1", "n2:8080", "node2", ("", ":8080"), "192.0.2.11"),
        ("node1", "192.0.2.12:8080", "node2", ("", ":8080"), "192.0.2.11"),
        ("192.0.2.11", "n2:8080", "node2", ("", ":8080"), "192.0.2.11"),
        ("n2", "n2:8080", "node2", ("", ":8080"), None),
        ("n2", ":8080", "node2", ("", ":8080"), None),
    ],
)
def test_node_asks_a_port_of_another_as_somebody_outside(
    source: str, target: str, node: str, asked: tuple[str, str], sender: str | None
) -> None:
    found, question = origin(TASKS, NODES, Question(source=source, target=target))
    assert (found, question.source, question.target) == (node, *asked)
    assert question.sender == (ipaddress.ip_address(sender) if sender else None)


def test_node_that_asks_for_what_is_no_port_is_refused() -> None:
    with pytest.raises(Invalid, match=r"db:80 is no port of a node: .*NODE:PORT"):
        origin(TASKS, NODES, Question(source="n1", target="db:80"))


def test_beginning_of_several_tasks_is_refused() -> None:
    with pytest.raises(Invalid, match=r"web may be any of web\.1.*, web\.2.*: say which"):
        origin(TASKS, NODES, Question(source="web", target="db"))
