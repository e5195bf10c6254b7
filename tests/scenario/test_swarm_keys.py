"""The swarm's own keys change under running tasks: another root, managers that lock. Packets and tasks go on.

Commands of the host serve here, not containers: nothing in these tests depends on what runs a task.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from outside import Trickle, await_tasks, cli, eventually, identities, run_cli, start_service

from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario

SERVICE = "web_ingress_lb"


@pytest.fixture(scope="module")
def _small() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=3, engine="process")) as lab:
        yield lab


@pytest.fixture
def small(_small: Lab) -> Lab:
    """n1 manages, not locked; all daemons run. Leave it so."""
    _small.await_ready()
    _small.reset()
    return _small


def _swarm(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.api("GET", "/swarm")
    return found


def _state(node: Node) -> str:
    return str(node.api("GET", "/info")["Swarm"]["LocalNodeState"])


def _keys(node: Node) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in (node.disk / "data" / "certificates").iterdir())


def test_another_root_takes_over_under_traffic_and_waits_for_a_node_that_is_away(small: Lab) -> None:
    manager, away = small.nodes[0], small.nodes[2]
    start_service(small, replicas=3)
    before, same = _swarm(manager), identities(small)
    token = cli(manager, "docker", "swarm", "join-token", "-q", "worker").strip()
    with Trickle(small.client, [str(node.spec.v4.ip) for node in small.nodes]) as trickle:
        away.kill_daemon()
        cli(manager, "docker", "swarm", "ca", "--rotate", "--detach")
        assert _swarm(manager)["RootRotationInProgress"] is True
        assert cli(manager, "hivemesh", "swarm", "ca") == before["TLSInfo"]["TrustRoot"]

        def half_way() -> None:
            wanted = _swarm(manager)["TLSInfo"]["CertIssuerPublicKey"]
            nodes = {each["Description"]["Hostname"]: each for each in manager.api("GET", "/nodes")}
            issuers = {name: each["Description"]["TLSInfo"].get("CertIssuerPublicKey") for name, each in nodes.items()}
            assert issuers["n1"] == issuers["n2"] == wanted != issuers["n3"]

        eventually(half_way, 10)
        assert _swarm(manager)["RootRotationInProgress"] is True
        small.restart_daemon("n3")

        def done() -> dict[str, Any]:
            found = _swarm(manager)
            assert found["RootRotationInProgress"] is False
            nodes = manager.api("GET", "/nodes")
            assert [each["Description"]["TLSInfo"] for each in nodes] == [found["TLSInfo"]] * 3
            return found

        after = eventually(done, 15)
    assert trickle.failed == []
    assert after["TLSInfo"]["TrustRoot"] != before["TLSInfo"]["TrustRoot"]
    assert identities(small) == same, "nothing was made anew"
    for node in small.nodes:
        assert (node.disk / "data" / "certificates" / "ca.pem").read_text() == after["TLSInfo"]["TrustRoot"]
    assert cli(manager, "docker", "swarm", "join-token", "-q", "worker").strip() != token
    for node in small.nodes:  # with nothing but the new root
        small.restart_daemon(node.name)
    small.await_ready()
    cli(manager, "hivemesh", "service", "scale", "--detach", f"{SERVICE}=4")
    await_tasks(small, SERVICE, 4)


def test_a_manager_that_locks_keeps_tasks_and_packets_until_it_is_unlocked(small: Lab) -> None:
    manager = small.nodes[0]
    start_service(small, replicas=3)
    same = identities(small)
    said = cli(manager, "docker", "swarm", "update", "--autolock=true")
    key = cli(manager, "docker", "swarm", "unlock-key", "-q").strip()
    assert key in said
    eventually(lambda: _assert_sealed(manager))
    with Trickle(small.client, [str(node.spec.v4.ip) for node in small.nodes]) as trickle:
        small.restart_daemon("n1")
        eventually(lambda: _assert_state(manager, "locked"), 10)
        refused = run_cli(manager, "docker", "node", "ls")
        assert refused.code != 0
        assert "Swarm is encrypted and needs to be unlocked before it can be used." in refused.err
        info = json.loads(cli(manager, "docker", "info", "--format", "{{json .Swarm}}"))
        assert (info["LocalNodeState"], info["ControlAvailable"]) == ("locked", False)
        wrong = run_cli(manager, "hivemesh", "swarm", "unlock", "--key", "SWMKEY-1-wrong")
        assert "swarm could not be unlocked: invalid key provided" in wrong.err
        assert "Swarm is encrypted" in run_cli(manager, "hivemesh", "swarm", "leave").err
        assert _state(manager) == "locked"
        cli(manager, "hivemesh", "swarm", "unlock", "--key", key)
        assert _state(manager) == "active"
        small.await_ready()
    assert trickle.failed == []
    assert identities(small) == same, "nothing was made anew"
    assert "not locked" in run_cli(manager, "hivemesh", "swarm", "unlock", "--key", key).err

    cli(manager, "hivemesh", "service", "scale", "--detach", f"{SERVICE}=4")
    await_tasks(small, SERVICE, 4)
    fresh = cli(manager, "hivemesh", "swarm", "unlock-key", "--rotate", "--quiet").strip()
    assert fresh.startswith("SWMKEY-1-")
    assert fresh != key
    cli(manager, "hivemesh", "swarm", "update", "--no-autolock")
    eventually(lambda: _assert_open(manager))
    small.restart_daemon("n1")
    small.await_ready()


def _assert_sealed(node: Node) -> None:
    assert "hivemesh locked" in _keys(node)
    assert "BEGIN PRIVATE KEY" not in _keys(node)


def _assert_open(node: Node) -> None:
    assert "hivemesh locked" not in _keys(node)
    assert "BEGIN PRIVATE KEY" in _keys(node)


def _assert_state(node: Node, state: str) -> None:
    assert _state(node) == state
