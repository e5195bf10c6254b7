"""Daemons die at any moment: packets, containers and the kernel carry on; the next one adopts what it finds."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from outside import (
    PORT,
    Trickle,
    await_served,
    await_tasks,
    cli,
    containers,
    curl,
    drift,
    eventually,
    identities,
    kernel,
    kernels,
    run_cli,
    start_service,
)
from under_load import PAUSE, load

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

FreshLab = Callable[[LabSettings], Lab]


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_killed_daemon_is_missed_by_nobody(lab: Lab, name: str) -> None:
    start_service(lab, replicas=3)
    before, same, held = kernels(lab), identities(lab), [containers(node) for node in lab.nodes]
    tables = lab.nodes[0].api("GET", "/services")
    spec = lab.node(name).spec
    with Trickle(lab.client, [str(spec.v4.ip), str(spec.v6.ip)]) as trickle:
        time.sleep(0.1)
        lab.node(name).kill_daemon()
        time.sleep(0.3)
        assert kernels(lab) == before, "without its daemon"
        lab.restart_daemon(name)
        lab.await_ready()
        eventually(lambda: _assert_no_drift(lab))
        time.sleep(0.3)
    assert trickle.failed == []
    assert len(trickle.tries) > 100
    assert kernels(lab) == before
    assert identities(lab) == same, "nothing was made anew"
    assert [containers(node) for node in lab.nodes] == held, "the same containers with the same processes"
    assert lab.nodes[0].api("GET", "/services") == tables
    assert len(await_tasks(lab, "web_ingress_lb", 3)) == 3

    cli(lab.nodes[0], "hivemesh", "service", "scale", "--detach", "web_ingress_lb=4")
    await_tasks(lab, "web_ingress_lb", 4)
    await_served(lab, 4)


def _assert_no_drift(lab: Lab) -> None:
    assert {node.name: drift(node) for node in lab.nodes} == {node.name: [] for node in lab.nodes}


def test_what_changed_while_a_daemon_was_dead_is_caught_up(lab: Lab) -> None:
    start_service(lab, replicas=2)
    node = lab.node("n3")
    node.kill_daemon()
    try:
        cli(lab.nodes[0], "hivemesh", "service", "scale", "--detach", "web_ingress_lb=1")
        cli(lab.nodes[0], "hivemesh", "service", "create", "--detach", "--name", "late", "--publish", "8091:80",
            "--constraint", "node.hostname==n2", "localhost/whoami")  # fmt: skip
        await_tasks(lab, "late", 1)
        node.exec("ip", "netns", "exec", "ingress_sbox", "nft", "flush", "table", "inet", "hivemesh")
    finally:
        lab.restart_daemon("n3")
    lab.await_ready()
    await_tasks(lab, "web_ingress_lb", 1)
    await_served(lab, 1)
    await_served(lab, 1, 8091)
    eventually(lambda: _assert_no_drift(lab))
    assert curl(lab.client, str(node.spec.v4.ip), 8091)[0].client == str(lab.client.spec.v4.ip)


def test_daemons_of_all_nodes_are_killed_at_once_and_the_mesh_serves_on(lab: Lab) -> None:
    start_service(lab, replicas=3)
    before, same, held = kernels(lab), identities(lab), [containers(node) for node in lab.nodes]
    with Trickle.to_all(lab) as trickle:
        for node in lab.nodes:
            node.kill_daemon()
        time.sleep(0.2)
        for node in reversed(lab.nodes):
            lab.restart_daemon(node.name)
        lab.await_ready()
        eventually(lambda: _assert_no_drift(lab))
    assert trickle.failed == []
    assert kernels(lab) == before
    assert identities(lab) == same
    assert [containers(node) for node in lab.nodes] == held


@pytest.mark.soak
def test_daemons_of_all_nodes_are_killed_ten_times_under_load_and_not_one_request_fails(
    lab: Lab, tmp_path: Path
) -> None:
    start_service(lab, replicas=3)
    before, same = kernels(lab), identities(lab)
    script = tmp_path / "pause.lua"
    script.write_text(PAUSE)
    with ExitStack() as loads:
        for node in lab.nodes:
            for options in ((), ("-H", "Connection: close")):
                loads.enter_context(load(lab.client, script, f"http://{node.spec.v4.ip}:{PORT}/", *options))
        for _ in range(10):
            for node in lab.nodes:
                node.kill_daemon()
            time.sleep(0.5)
            for node in lab.nodes:
                lab.restart_daemon(node.name)
            lab.await_ready()
            eventually(lambda: _assert_no_drift(lab), 20)
    assert kernels(lab) == before
    assert identities(lab) == same, "nothing was made anew"


def test_daemon_that_is_asked_says_what_its_threads_do_and_goes_on(lab: Lab) -> None:
    node = lab.node("n2")
    daemon = node.daemon()
    assert daemon is not None
    before = len(node.log.read_text())
    os.kill(daemon.pid, signal.SIGUSR1)
    eventually(lambda: _assert_in("most recent call first", node.log.read_text()[before:]))
    assert node.api("GET", "/_ping") == "OK"


def _assert_in(part: str, text: str) -> None:
    assert part in text


def test_node_that_leaves_is_clean_and_may_come_back(fresh_lab: Callable[[LabSettings], Lab]) -> None:
    lab = fresh_lab(LabSettings(nodes=2))
    first, second = lab.nodes
    start_service(lab)
    assert run_cli(first, "hivemesh", "node", "rm", "n2").code != 0, "a node that is up is not removed"

    cli(second, "hivemesh", "swarm", "leave")
    eventually(lambda: _assert_clean(second), 10)
    assert second.api("GET", "/info")["Swarm"]["LocalNodeState"] == "inactive"

    await_served_by(lab, 2)  # both tasks are on the first one now
    eventually(lambda: _assert_down(lab))
    cli(first, "hivemesh", "node", "rm", "n2")
    assert [node["Description"]["Hostname"] for node in first.api("GET", "/nodes")] == ["n1"]

    token = first.api("GET", "/swarm")["JoinTokens"]["Worker"]
    cli(second, "hivemesh", "swarm", "join", "--token", token, f"{first.spec.v4.ip}:2377")
    lab.await_ready()
    await_served(lab, 2)
    assert len({answer.host for answer in curl(lab.client, str(second.spec.v6.ip), count=2)}) == 2

    # removed by force, it learns of it and holds nothing any more
    cli(first, "hivemesh", "node", "rm", "--force", "n2")
    eventually(lambda: _assert_thrown_out(lab), 10)
    cli(second, "hivemesh", "swarm", "leave", "--force")
    eventually(lambda: _assert_clean(second), 10)

    # the last manager leaves only by force, and then nothing is left either
    with pytest.raises(Refused):
        first.api("POST", "/swarm/leave")
    first.api("POST", "/swarm/leave?force=1")
    eventually(lambda: _assert_clean(first), 10)


def _assert_clean(node: Node) -> None:
    """Links of a removed namespace go some milliseconds after its name."""
    state = kernel(node)
    assert state.keys() == {""}
    assert state[""]["links"].keys() == {"lo", "eth0"}
    assert state[""]["nft"] == []
    assert state[""]["routes"] == []
    assert containers(node) == {}
    assert "bpf" not in node.exec("ls", "/run/hivemesh").stdout.split()  # what sockets are balanced with


def await_served_by(lab: Lab, count: int) -> None:
    """By the first node alone."""

    def look() -> None:
        answers = curl(lab.client, str(lab.nodes[0].spec.v4.ip), count=count)
        assert len({answer.host for answer in answers}) == count

    eventually(look)


def _assert_down(lab: Lab) -> None:
    states = {n["Description"]["Hostname"]: n["Status"]["State"] for n in lab.nodes[0].api("GET", "/nodes")}
    assert states["n2"] == "down"


def _assert_thrown_out(lab: Lab) -> None:
    swarm = lab.nodes[1].api("GET", "/info")["Swarm"]
    assert swarm["LocalNodeState"] == "error"
    assert "removed" in swarm["Error"]
