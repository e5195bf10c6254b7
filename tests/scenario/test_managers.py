"""Several managers: one dies, a majority dies, the last one's disk dies; packets and tasks know nothing of it.

Commands of the host serve here, not containers: nothing in these tests depends on what runs a task.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outside import SERVICE, Trickle, await_tasks, cli, eventually, run_cli, start_service

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def _managed() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=4, managers=3, engine="process")) as lab:
        yield lab


@pytest.fixture
def managed(_managed: Lab) -> Lab:
    """n1, n2 and n3 manage, n4 works. Leave it so."""
    eventually(lambda: _assert_managers(_managed, 3), 60)
    _managed.reset()
    return _managed


def _nodes(at: Node) -> dict[str, Any]:
    return {node["Description"]["Hostname"]: node for node in at.api("GET", "/nodes")}


def _leader(at: Node) -> str:
    return _leader_of(_nodes(at))


def _leader_of(nodes: dict[str, Any]) -> str:
    leaders = [name for name, node in nodes.items() if node.get("ManagerStatus", {}).get("Leader")]
    assert len(leaders) == 1
    return leaders[0]


def _assert_managers(lab: Lab, count: int, but: str = "") -> None:
    """All nodes are ready, so many manage (the first ones, but not that one), each of them answers, and they agree on
    who leads."""
    leaders = set()
    for node in [node for node in lab.nodes[:3] if node.name != but][:count]:
        try:
            nodes = _nodes(node)
        except (LabError, Refused) as error:  # its daemon starts; or it is no manager yet
            raise AssertionError(str(error)) from error
        assert [name for name, seen in nodes.items() if seen["Status"]["State"] != "ready"] == []
        managers = [seen["ManagerStatus"]["Reachability"] for seen in nodes.values() if "ManagerStatus" in seen]
        assert managers == ["reachable"] * count
        leaders.add(_leader_of(nodes))
    assert len(leaders) == 1


def _kill_manager(node: Node) -> None:
    """The daemon, and the part of the store that it runs; tasks and their network stay."""
    for process in [process for process in node.processes() if process.runs("hivemeshd") or process.runs("etcd")]:
        os.kill(process.pid, signal.SIGKILL)


def test_a_killed_leader_is_missed_by_nobody_and_work_goes_on(managed: Lab) -> None:
    start_service(managed, replicas=4)
    led = _leader(managed.nodes[0])
    left = [node for node in managed.nodes if node.name != led]
    follower = next(node for node in left if node.name != "n4")
    with Trickle(managed.client, [str(node.spec.v4.ip) for node in managed.nodes]) as trickle:
        _kill_manager(managed.node(led))
        cli(follower, "hivemesh", "service", "create", "--detach", "--name", "late", "--constraint",
            "node.hostname==n4", "localhost/whoami")  # fmt: skip

        def works() -> None:
            states = [task["Status"]["State"] for task in follower.api("GET", '/tasks?filters={"service":["late"]}')]
            assert states == ["running"]
            assert _leader(follower) != led

        eventually(works, 15)
    assert trickle.failed == []
    assert len(trickle.tries) > 100
    managed.restart_daemon(led)
    eventually(lambda: _assert_managers(managed, 3), 20)
    await_tasks(managed, SERVICE, 4)


def test_any_manager_takes_orders_and_reads_the_output_of_any_task(managed: Lab) -> None:
    for number, node in enumerate(managed.nodes[:3]):
        name = f"web{number}"
        cli(node, "docker", "service", "create", "--detach", "--name", name, "--replicas", "2", "localhost/whoami")
        shown = cli(node, "docker", "service", "ls", "--format", "{{.Name}}").split()
        assert name in shown, "what a manager was told it shows at once"
    for number, node in enumerate(managed.nodes[:3]):
        await_tasks(managed, f"web{number}", 2)
        cli(node, "docker", "service", "logs", f"web{(number + 1) % 3}")
    addresses = [
        address
        for service in managed.nodes[2].api("GET", "/services")
        for vip in service["Endpoint"].get("VirtualIPs") or ()
        for address in vip["Addr"].split()
    ]
    assert len(addresses) == len(set(addresses))
    warning = run_cli(managed.nodes[0], "docker", "swarm", "leave")
    assert warning.code
    assert "participating as a manager" in warning.err


def test_a_demoted_leader_is_followed_by_another_and_no_write_is_lost(managed: Lab) -> None:
    led = _leader(managed.nodes[0])
    other = next(node for node in managed.nodes[:3] if node.name != led)
    promised: list[str] = []
    over = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            with contextlib.suppress(LabError, Refused):
                other.api("POST", "/configs/create", {"Name": f"c{number}", "Data": "aGl2ZQ=="}, timeout=20)
                promised.append(f"c{number}")
            time.sleep(0.02)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        cli(other, "docker", "node", "demote", led)
        eventually(lambda: _assert_managers(managed, 2, but=led), 30)
        before = len(promised)
        eventually(lambda: _assert_more(promised, before), 10)
    finally:
        over.set()
        writing.join()
    assert _leader(other) != led
    for manager in managed.nodes[:3]:
        if manager.name != led:
            kept = {config["Spec"]["Name"] for config in manager.api("GET", "/configs")}
            assert set(promised) - kept == set(), manager.name
    for name in promised:
        other.api("DELETE", f"/configs/{name}")
    cli(other, "docker", "node", "promote", led)
    eventually(lambda: _assert_managers(managed, 3), 60)


def test_a_manager_that_is_promoted_before_it_heard_of_its_demotion_is_one_again(managed: Lab) -> None:
    led = _leader(managed.nodes[0])
    dismissed = next(node for node in managed.nodes[:3] if node.name != led)
    other = managed.node(led)
    for removed in (False, True):
        cli(other, "docker", "node", "demote", dismissed.name)
        while removed and "ManagerStatus" in _nodes(other)[dismissed.name]:
            time.sleep(0.01)
        cli(other, "docker", "node", "promote", dismissed.name)
        eventually(lambda: _assert_managers(managed, 3), 60)


def _assert_more(promised: list[str], before: int) -> None:
    assert len(promised) > before


@pytest.mark.soak
def test_a_lost_majority_is_said_and_one_manager_goes_on_when_forced(managed: Lab) -> None:
    start_service(managed, replicas=4)
    last, lost = managed.nodes[0], managed.nodes[1:3]
    with Trickle(managed.client, [str(managed.node("n4").spec.v4.ip)]) as trickle:
        for node in lost:
            _kill_manager(node)
        refused = run_cli(last, "hivemesh", "network", "create", "--driver", "overlay", "stuck")
        assert refused.code
        assert "does not have a leader" in refused.err
        cli(last, "docker", "swarm", "init", "--force-new-cluster")
        cli(last, "docker", "network", "create", "--driver", "overlay", "free")
        for node in lost:
            managed.restart_daemon(node.name)
        eventually(lambda: _assert_managers(managed, 1), 20)
    assert trickle.failed == []
    await_tasks(managed, SERVICE, 4)
    cli(last, "docker", "node", "promote", "n2", "n3")


def test_a_swarm_comes_back_from_a_snapshot_and_its_nodes_by_themselves(tmp_path: Path) -> None:
    with a_lab(LabSettings(nodes=2, engine="process")) as lab:
        first = lab.nodes[0]
        start_service(lab, "--constraint", "node.hostname==n2")
        before = {task.id for task in await_tasks(lab, SERVICE, 2)}
        saved = tmp_path / "saved"
        cli(first, "hivemesh", "swarm", "snapshot", "save", str(saved))
        assert saved.stat().st_mode & 0o777 == 0o600
        with Trickle(lab.client, [str(lab.nodes[1].spec.v4.ip)]) as trickle:
            cli(first, "docker", "swarm", "leave", "--force")
            cli(first, "hivemesh", "swarm", "snapshot", "restore", "--advertise-addr", str(first.spec.v4.ip),
                str(saved))  # fmt: skip
            lab.await_ready()
            assert {task.id for task in await_tasks(lab, SERVICE, 2)} == before, "nothing was started anew"
        assert trickle.failed == []
        cli(first, "hivemesh", "service", "scale", "--detach", f"{SERVICE}=3")
        await_tasks(lab, SERVICE, 3)
