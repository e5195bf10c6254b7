"""All managers change: each is replaced, the leader falls silent, roots and locks change; tasks know nothing of it.

Commands of the host serve here, not containers: nothing in these tests depends on what runs a task.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from outside import SERVICE, TaskSeen, Trickle, cli, eventually, run_cli, start_service

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = [pytest.mark.scenario, pytest.mark.soak]

SILENT = 20.0
"""Seconds that a leader's daemon stands still."""


@pytest.fixture
def six() -> Iterator[Lab]:
    """n1, n2 and n3 manage, the others work."""
    with a_lab(LabSettings(nodes=6, managers=3, engine="process")) as lab:
        yield lab


@pytest.fixture(scope="module")
def _four() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=4, managers=3, engine="process")) as lab:
        yield lab


@pytest.fixture
def four(_four: Lab) -> Lab:
    """n1, n2 and n3 manage, n4 works. Leave it so."""
    eventually(lambda: _agreed(_four.nodes[:3]), 60)
    _four.reset()
    return _four


def _nodes(at: Node) -> dict[str, Any]:
    try:
        return {node["Description"]["Hostname"]: node for node in at.api("GET", "/nodes")}
    except (LabError, Refused) as error:  # its daemon starts; or it is no manager
        raise AssertionError(str(error)) from error


def _agreed(managers: Sequence[Node], among: int = 0) -> str:
    """These are the managers, each of them says so, all nodes are ready, and they agree on who leads: its name."""
    leaders = set()
    for manager in managers:
        nodes = _nodes(manager)
        assert [name for name, node in nodes.items() if node["Status"]["State"] != "ready"] == []
        status = {name: node["ManagerStatus"] for name, node in nodes.items() if "ManagerStatus" in node}
        assert set(status) == {node.name for node in managers}
        assert {each["Reachability"] for each in status.values()} == {"reachable"}
        leaders |= {name for name, each in status.items() if each.get("Leader")}
        assert not among or len(nodes) == among
    assert len(leaders) == 1
    return str(leaders.pop())


def _tasks(at: Node) -> set[tuple[str, str]]:
    """Which run, and where."""
    tasks = at.api("GET", f'/tasks?filters={{"service":["{SERVICE}"],"desired-state":["running"]}}')
    return {(task["ID"], task["NodeID"]) for task in tasks if task["Status"]["State"] == "running"}


def _ids(running: Sequence[TaskSeen]) -> set[str]:
    return {task.id for task in running}


def test_all_managers_are_replaced_one_by_one_and_the_old_ones_are_let_in_nowhere(six: Lab) -> None:
    stay, leave = six.nodes[3:], list(six.nodes[:3])
    for node in leave:
        cli(six.nodes[0], "docker", "node", "update", "--label-add", "old=yes", node.name)
    running = _ids(start_service(six, "--constraint", "node.labels.old!=yes", replicas=3))
    managers = list(leave)
    with Trickle(six.client, [str(node.spec.v4.ip) for node in stay]) as trickle:
        for old, new in zip(leave, stay, strict=True):
            cli(old, "docker", "node", "promote", new.name)
            managers.append(new)
            eventually(lambda: _agreed(managers), 40)
            shutil.copytree(old.disk / "data" / "certificates", old.disk / "kept")
            cli(new, "docker", "node", "demote", old.name)
            managers.remove(old)
            eventually(lambda: _agreed(managers), 40)
            eventually(lambda: _leave(old), 15)  # noqa: B023
            eventually(lambda: _is_down(new, old), 10)  # noqa: B023
            cli(new, "docker", "node", "rm", old.name)
        eventually(lambda: _agreed(stay, among=3), 40)
    assert trickle.failed == []
    assert len(trickle.tries) > 1000
    assert {task for task, _ in _tasks(stay[0])} == running
    for old in leave:
        assert [process for process in old.processes() if process.runs("etcd")] == []
        assert (
            sorted(path.name for path in (old.disk / "data").iterdir() if path.name in ("store", "certificates")) == []
        )
        certificate, roots = (str(old.disk / "kept" / name) for name in ("node.pem", "ca.pem"))
        for path, words in (("/v1/renew", "{}"), ("/v1/manager", '{"addr":"198.51.100.11:2377"}'), ("/v1/members", "")):
            told = old.exec(
                "curl", "--silent", "--max-time", "5", "--cert", certificate, "--cacert", roots, "--write-out",
                "%{http_code}", "--connect-to", "swarm-manager:2377:n4:2377", *(["--data", words] if words else []),
                f"https://swarm-manager:2377{path}", check=False,
            )  # fmt: skip
            assert told.stdout.endswith("403"), (path, told)
    cli(stay[2], "hivemesh", "service", "scale", "--detach", f"{SERVICE}=5")
    eventually(lambda: _assert_count(stay[0], 5), 20)


def _leave(node: Node) -> None:
    """As soon as it has heard that it is no manager."""
    said = run_cli(node, "docker", "swarm", "leave")
    assert said.code == 0, said


def _is_down(at: Node, node: Node) -> None:
    assert _nodes(at)[node.name]["Status"]["State"] == "down"


def _assert_count(at: Node, count: int) -> None:
    assert len(_tasks(at)) == count


def test_a_leader_that_stands_still_is_followed_and_steps_back_without_a_word(four: Lab) -> None:
    start_service(four, "--constraint", "node.hostname==n4", replicas=2)
    old = four.node(_agreed(four.nodes[:3]))
    others = [node for node in four.nodes[:3] if node.name != old.name]
    before, said = _tasks(others[0]), len(old.log.read_text())
    daemon = old.daemon()
    assert daemon is not None
    with Trickle(four.client, [str(node.spec.v4.ip) for node in four.nodes]) as trickle:
        os.kill(daemon.pid, signal.SIGSTOP)
        until = time.monotonic() + SILENT
        try:
            new = eventually(lambda: _leader_other_than(others[0], old), 10)
            cli(others[1], "hivemesh", "service", "create", "--detach", "--name", "late", "--constraint",
                "node.hostname==n4", "localhost/whoami")  # fmt: skip
            eventually(lambda: _runs(others[0], "late"), 15)
            time.sleep(max(0.0, until - time.monotonic()))
            away = {name: node for name, node in _nodes(others[0]).items() if node["Status"]["State"] != "ready"}
            assert set(away) == {old.name}
            versions = _versions(others[0])
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        eventually(lambda: _agreed(four.nodes[:3]), 20)
    assert _agreed(four.nodes[:3]) == new
    assert trickle.failed == []
    assert _tasks(others[0]) == before
    changed = {name for name, version in _versions(others[0]).items() if versions[name] != version}
    assert changed <= {old.name}, "it wrote nothing of what it thought when it woke"
    assert old.log.read_text()[said:].count("store: this manager leads no more") == 1


def _leader_other_than(at: Node, old: Node) -> str:
    leaders = [name for name, node in _nodes(at).items() if node.get("ManagerStatus", {}).get("Leader")]
    assert leaders != [old.name]
    assert len(leaders) == 1
    return leaders[0]


def _runs(at: Node, service: str) -> None:
    states = [task["Status"]["State"] for task in at.api("GET", f'/tasks?filters={{"service":["{service}"]}}')]
    assert states == ["running"]


def _versions(at: Node) -> dict[str, int]:
    return {name: node["Version"]["Index"] for name, node in _nodes(at).items()}


def test_three_managers_take_another_root_and_lock_under_traffic(four: Lab) -> None:
    start_service(four, replicas=4)
    before, managers = _tasks(four.nodes[0]), four.nodes[:3]
    first = managers[0].api("GET", "/swarm")["TLSInfo"]["TrustRoot"]
    servers = {manager.name: _etcd(manager) for manager in managers}
    with Trickle(four.client, [str(node.spec.v4.ip) for node in four.nodes]) as trickle:
        cli(managers[1], "docker", "swarm", "ca", "--rotate", "--detach")

        def rotated() -> str:
            for manager in managers:
                swarm = manager.api("GET", "/swarm")
                assert swarm["RootRotationInProgress"] is False
                assert swarm["TLSInfo"]["TrustRoot"] != first
            return str(swarm["TLSInfo"]["TrustRoot"])

        root = eventually(rotated, 40)
        for manager in managers:  # while some etcd still runs on the old root
            four.restart_daemon(manager.name)
        for manager in managers:
            eventually(lambda: _assert_etcd_trusts(manager, root, servers[manager.name]), 40)  # noqa: B023
        eventually(lambda: _agreed(managers), 20)

        cli(managers[2], "docker", "swarm", "update", "--autolock=true")
        key = cli(managers[0], "docker", "swarm", "unlock-key", "-q").strip()
        for manager in managers:
            eventually(lambda: _assert_sealed(manager), 10)  # noqa: B023
        for manager in managers:
            four.restart_daemon(manager.name)
            eventually(lambda: _assert_state(manager, "locked"), 10)  # noqa: B023
            cli(manager, "hivemesh", "swarm", "unlock", "--key", key)
            eventually(lambda: _agreed(managers), 20)
        for manager in managers:  # all at once, and their etcds with them
            for process in [each for each in manager.processes() if each.runs("hivemeshd") or each.runs("etcd")]:
                os.kill(process.pid, signal.SIGKILL)
        for manager in managers:
            four.restart_daemon(manager.name)
        for manager in managers:
            assert run_cli(manager, "docker", "node", "ls").code != 0
            cli(manager, "hivemesh", "swarm", "unlock", "--key", key, timeout=90)
        eventually(lambda: _agreed(managers), 40)
        cli(managers[1], "docker", "swarm", "update", "--autolock=false")
        cli(managers[0], "docker", "network", "create", "--driver", "overlay", "afterwards")
    assert trickle.failed == []
    assert _tasks(managers[2]) == before, "nothing was started anew"


def _etcd(manager: Node) -> int:
    servers = [process.pid for process in manager.processes() if process.runs("etcd")]
    assert len(servers) == 1
    return servers[0]


def _assert_etcd_trusts(manager: Node, root: str, before: int) -> None:
    """It was started anew, with this root and a certificate of it."""
    assert _etcd(manager) != before
    assert (manager.run / "etcd" / "ca.pem").read_text() == root
    manager.exec("openssl", "verify", "-CAfile", "/run/hivemesh/etcd/ca.pem", "/run/hivemesh/etcd/node.pem")


def _assert_sealed(manager: Node) -> None:
    files = manager.disk / "data" / "certificates"
    assert "BEGIN PRIVATE KEY" not in "".join(path.read_bytes().decode("latin-1") for path in files.iterdir())


def _assert_state(manager: Node, state: str) -> None:
    assert manager.api("GET", "/info")["Swarm"]["LocalNodeState"] == state
