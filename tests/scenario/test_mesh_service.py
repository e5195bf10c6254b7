"""The classic scenario: a published service, asked from everywhere, scaled up, down and removed."""

import os
import shutil
import signal
import sys
import time
from collections import Counter

import pytest
from outside import (
    CREATE,
    PORT,
    SERVICE,
    Trickle,
    await_served,
    await_tasks,
    cli,
    containers,
    curl,
    eventually,
    inside,
    kernels,
    parse_answer,
    places,
    start_service,
    tasks_of,
    udp,
)

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

needs_docker = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")


@pytest.mark.parametrize("program", [pytest.param("docker", marks=needs_docker), "hivemesh"])
def test_classic_service_is_served_everywhere_and_leaves_nothing(lab: Lab, program: str) -> None:
    first = lab.nodes[0]
    before = kernels(lab)
    cli(first, program, *CREATE)
    running = await_tasks(lab, SERVICE, 2)
    await_served(lab, 2)
    hosts = {task.host for task in running}
    assert len({task.node for task in running}) == 2, "one node has no task, and must answer all the same"

    for asker, asked, seen in places(lab):
        answers = curl(asker, asked, count=4)
        assert Counter(answer.host for answer in answers) == dict.fromkeys(hosts, 2), f"{asker.name} asks {asked}"
        assert {answer.client for answer in answers} == {seen}, f"{asker.name} asks {asked}"

    with Trickle.to_all(lab) as trickle:
        cli(first, program, "service", "scale", "--detach", f"{SERVICE}=5")
        five = {task.host for task in await_tasks(lab, SERVICE, 5)}
        await_served(lab, 5)
        grown = time.monotonic()
        time.sleep(0.5)
        cli(first, program, "service", "scale", "--detach", f"{SERVICE}=1")
        (one,) = await_tasks(lab, SERVICE, 1)
        shrunk = time.monotonic()
        time.sleep(0.2)
    assert len(trickle.tries) > 50
    assert trickle.failed == []
    assert set(trickle.hosts(since=grown)) == five
    assert set(trickle.hosts(since=shrunk)) == {one.host}, "an ended task was asked"

    with Trickle.to_all(lab) as trickle:
        time.sleep(0.1)
        asked_to_go = time.monotonic()
        cli(first, program, "service", "rm", SERVICE)
        eventually(lambda: _assert_no_tasks(lab))
        gone = time.monotonic()
        time.sleep(0.1)
    assert {attempt.error for attempt in trickle.failed} <= {"ConnectionRefusedError"}, "refused at once, never cut"
    assert all(attempt.began > asked_to_go for attempt in trickle.failed)
    assert all(attempt.error for attempt in trickle.tries if attempt.began > gone)

    eventually(lambda: _assert_equal(kernels(lab), before))
    assert [containers(node) for node in lab.nodes] == [{}, {}, {}]


def _assert_no_tasks(lab: Lab) -> None:
    assert lab.nodes[0].api("GET", "/tasks") == []


def _assert_equal(now: dict[str, object], before: dict[str, object]) -> None:
    assert now == before


def test_task_that_leaves_serves_until_the_slowest_node_sends_elsewhere(lab: Lab) -> None:
    """A node whose agent hangs goes on sending connections to the old task: it must not be stopped before."""
    start_service(lab, "--constraint", "node.hostname!=n3", replicas=2)
    slow = lab.node("n3")
    daemon = slow.daemon()
    assert daemon is not None
    with Trickle(lab.client, [str(slow.spec.v4.ip), str(slow.spec.v6.ip)]) as trickle:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            cli(lab.nodes[0], "hivemesh", "service", "scale", "--detach", f"{SERVICE}=1")
            time.sleep(1.0)
            assert {task.state for task in tasks_of(lab, SERVICE)} == {"running"}, "it waits for the slow node"
            hung = time.monotonic()
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        (left,) = await_tasks(lab, SERVICE, 1)
        over = time.monotonic()
        time.sleep(0.2)
    assert trickle.failed == []
    assert len({attempt.host for attempt in trickle.tries if attempt.began < hung}) == 2
    assert set(trickle.hosts(since=over)) == {left.host}


def test_udp_service_sees_every_client_and_answers_from_the_asked_address(lab: Lab) -> None:
    running = start_service(lab, "--publish", "8053:80/udp", port=0)
    await_served(lab, 2, 8053, protocol="udp")
    hosts = {task.host for task in running}
    for asker, asked, seen in places(lab):
        answers = udp(asker, asked, 8053, count=4)
        assert Counter(answer.host for answer in answers) == dict.fromkeys(hosts, 2), f"{asker.name} asks {asked}"
        assert {answer.client for answer in answers} == {seen}, f"{asker.name} asks {asked}"


def test_connections_are_spread_in_turn_whatever_other_services_do(lab: Lab) -> None:
    """A counter shared by services resonates: asked in turn, one of two services would always hit the same task."""
    ours = {task.host for task in start_service(lab, replicas=3)}
    others = {task.host for task in start_service(lab, name="other", replicas=3, port=8091)}
    asked, client = str(lab.nodes[2].spec.v4.ip), lab.client
    seen: dict[int, Counter[str]] = {PORT: Counter(), 8091: Counter()}
    for _ in range(9):
        for port in seen:
            seen[port].update(answer.host for answer in curl(client, asked, port))
    assert seen[PORT] == dict.fromkeys(ours, 3)
    assert seen[8091] == dict.fromkeys(others, 3)


_SAME_PORT = """
import socket, sys
port, targets = int(sys.argv[1]), sys.argv[3:]
open_ = []
for target in targets:
    one = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.settimeout(3)
    one.bind(("", 40123))
    one.connect((target, port))
    open_.append(one)
for _ in range(3):
    for one in open_:
        one.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        reply = b""
        while b"\\r\\n\\r\\n" not in reply or b"GET / HTTP" not in reply:
            piece = one.recv(65536)
            assert piece, "cut"
            reply += piece
        assert b"RemoteAddr: " + sys.argv[2].encode() in reply, reply  # whose port may have been changed on the way
for one in open_:
    one.close()
print("all answered")
"""


@pytest.mark.parametrize("version", [4, 6])
def test_one_client_port_through_all_nodes_is_that_many_connections(lab: Lab, version: int) -> None:
    """All three reach the one task with the same client address and port."""
    start_service(lab, replicas=1)
    targets = [str(node.spec.v4.ip if version == 4 else node.spec.v6.ip) for node in lab.nodes]
    own = str(lab.client.spec.v4.ip) if version == 4 else f"[{lab.client.spec.v6.ip}]"
    asked = lab.client.exec(sys.executable, "-S", "-c", _SAME_PORT, str(PORT), own, *targets)
    assert asked.stdout == "all answered\n"


def test_container_that_asks_appears_as_its_node(lab: Lab) -> None:
    """It has an address on its node's gateway bridge only, which means nothing elsewhere."""
    one, two = start_service(lab, replicas=2)
    home = lab.node(one.node)
    for asked, seen in ((home.spec.v4.ip, str(home.spec.v4.ip)), (home.spec.v6.ip, str(home.spec.v6.ip))):
        url = f"http://{f'[{asked}]' if asked.version == 6 else asked}:{PORT}/"
        answers = [parse_answer(inside(home, one.id[:12], "curl", "-s", "-g", "-m", "3", url)) for _ in range(2)]
        assert {answer.host for answer in answers} == {one.host, two.host}
        assert {answer.client for answer in answers} == {seen}


def test_host_mode_port_is_the_tasks_nodes_alone(lab: Lab) -> None:
    (task,) = start_service(lab, "--publish", "published=8099,target=80,mode=host", replicas=1, port=0)
    home = lab.node(task.node)
    for asked, seen in ((home.spec.v4.ip, lab.client.spec.v4.ip), (home.spec.v6.ip, lab.client.spec.v6.ip)):
        (answer,) = curl(lab.client, str(asked), 8099)
        assert (answer.host, answer.client) == (task.host, str(seen))
    for node in lab.nodes:
        if node is not home:
            refused = lab.client.exec("curl", "-s", f"http://{node.spec.v4.ip}:8099/", check=False)
            assert refused.returncode == 7, "connection refused"
