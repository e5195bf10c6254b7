"""`docker run --network` on overlays: the docker CLI asks, on managers and workers; names and traffic bear witness."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from outside import (
    IMAGE,
    await_tasks,
    cli,
    curl,
    drift,
    eventually,
    ingress_id,
    inside,
    overlay_of,
    run_cli,
    start_service,
)

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

SUBNET = "10.99.0.0/24"


@contextmanager
def attachable(lab: Lab, name: str = "mynet", subnet: str = SUBNET) -> Iterator[str]:
    """A network for plain containers; whatever a test put on it is removed at the end, and leaves nothing."""
    cli(lab.nodes[0], "docker", "network", "create", "--driver", "overlay", "--attachable", "--subnet", subnet, name)
    try:
        yield name
    finally:
        for node in lab.nodes:
            if node.daemon() is None:
                lab.restart_daemon(node.name)
            left = cli(node, "docker", "ps", "--all", "--quiet", "--filter", f"network={name}").split()
            if left:
                cli(node, "docker", "rm", "--force", *left)
    lab.reset()
    for node in lab.nodes:
        eventually(lambda node=node: _same(namespaces(node), {"ingress_sbox", overlay_of(node, ingress_id(lab))}))  # type: ignore[misc]


def _same(found: set[str], wanted: set[str]) -> None:
    assert found == wanted


def namespaces(node: Node) -> set[str]:
    return {line.split()[0] for line in node.exec("ip", "netns").stdout.splitlines()}


def docker(node: Node, *words: str) -> str:
    return cli(node, "docker", *words).strip()


def refused(node: Node, *words: str) -> str:
    said = run_cli(node, "docker", *words)
    assert said.code != 0, said
    return said.err


def run(node: Node, name: str, *options: str, network: str = "mynet") -> str:
    """A container that serves; its id."""
    return docker(node, "run", "--detach", "--name", name, "--network", network, *options, IMAGE)


def network_of(node: Node, container: str, network: str = "mynet") -> dict[str, Any]:
    settings = json.loads(docker(node, "inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    found: dict[str, Any] = settings[network]
    return found


def asked(node: Node, container: str, name: str) -> set[str]:
    """The addresses a name has inside a container; none when nobody knows it."""
    said = run_cli(node, "docker", "exec", container, "nslookup", "-type=a", name)
    return set(re.findall(rf"^Name:\s+{re.escape(name)}\nAddress: (\S+)", said.out, re.MULTILINE))


def fetched(node: Node, container: str, name: str) -> str:
    """The host that answers there."""
    text = docker(node, "exec", container, "wget", "-q", "-O", "-", f"http://{name}/")
    return text.splitlines()[0].removeprefix("Hostname: ")


def test_plain_containers_and_tasks_find_and_reach_each_other(lab: Lab) -> None:
    first, worker = lab.nodes[0], lab.nodes[1]
    with attachable(lab):
        start_service(lab, "--network", "mynet", name="web", replicas=1, port=0)
        one = run(first, "c1", "--hostname", "box", "--network-alias", "db")
        two = run(worker, "c2", "--ip", "10.99.0.77", "--publish", "8099:80", "--dns-option", "timeout:3")
        own = network_of(first, "c1")["IPAddress"]
        assert network_of(worker, "c2")["IPAddress"] == "10.99.0.77"
        for name in ("c1", "db", "box", one[:12], "c1.mynet"):
            assert asked(worker, "c2", name) == {own}, name
        assert asked(first, "c1", "c2") == asked(first, "c1", two[:12]) == {"10.99.0.77"}
        assert asked(first, "c1", "tasks.web") < {f"10.99.0.{number}" for number in range(2, 255)}
        assert len(asked(first, "c1", "web")) == 1
        (task,) = await_tasks(lab, "web", 1)
        assert fetched(first, "c1", "web") == fetched(worker, "c2", "web") == task.host
        assert fetched(lab.node(task.node), f"web.1.{task.id}", "c2") == two[:12]
        assert fetched(worker, "c2", "db") == "box"
        assert curl(lab.client, str(worker.spec.v4.ip), 8099)[0].host == two[:12]
        assert "options timeout:3" in docker(worker, "exec", "c2", "cat", "/etc/resolv.conf")
        assert re.search(rf"^{own}\s+box$", docker(first, "exec", "c1", "cat", "/etc/hosts"), re.MULTILINE)
        assert "0.0.0.0:8099->80/tcp" in docker(worker, "ps", "--filter", "network=mynet", "--format", "{{.Ports}}")
        assert [drift(node) for node in lab.nodes] == [[], [], []]
        cli(first, "docker", "service", "rm", "web")
        eventually(lambda: _in_use_by_container(first))


def _in_use_by_container(node: Node) -> None:
    assert "in use by task" in refused(node, "network", "rm", "mynet")


def test_network_comes_and_goes_with_the_process(lab: Lab) -> None:
    first, worker = lab.nodes[0], lab.nodes[1]
    with attachable(lab), attachable(lab, "other", "10.98.0.0/24"):
        run(first, "c1")
        two = run(worker, "c2")

        def gone() -> None:
            assert asked(first, "c1", "c2") == set()
            assert two not in docker(first, "network", "inspect", "--verbose", "mynet")

        docker(worker, "stop", "--time", "0", "c2")
        gone()
        assert network_of(worker, "c2")["IPAddress"] == ""
        docker(worker, "start", "c2")
        assert asked(first, "c1", "c2") == {network_of(worker, "c2")["IPAddress"]}
        docker(worker, "restart", "--time", "0", "c2")
        assert fetched(first, "c1", "c2") == two[:12]
        docker(worker, "rename", "c2", "c3")
        eventually(lambda: _same(asked(first, "c1", "c3"), {network_of(worker, "c3")["IPAddress"]}))
        docker(worker, "rename", "c3", "c2")
        # it ends by itself
        worker.exec("kill", "-9", docker(worker, "inspect", "--format", "{{.State.Pid}}", "c2"))
        eventually(gone)
        # networks change while it does not run, and while it does
        docker(worker, "network", "connect", "--alias", "late", "other", "c2")
        docker(worker, "start", "c2")
        docker(first, "network", "connect", "other", "c1")
        late = network_of(worker, "c2", "other")["IPAddress"]
        assert asked(first, "c1", "late.other") == asked(first, "c1", "c2.other") == {late}
        docker(worker, "network", "disconnect", "mynet", "c2")
        eventually(lambda: _same(asked(first, "c1", "c2"), {late}))
        assert fetched(first, "c1", "c2") == two[:12]
        assert "is not connected to the network mynet" in refused(worker, "network", "disconnect", "mynet", "c2")
        docker(worker, "network", "disconnect", "other", "c2")
        assert "eth" not in docker(worker, "exec", "c2", "ip", "address")  # nor a way out
        docker(worker, "network", "connect", "other", "c2")
        assert "already exists in network other" in refused(worker, "network", "connect", "other", "c2")
        # a command that ends, with all of its output and its exit code, twice
        assert "10.99.0.88" in docker(
            worker, "run", "--rm", "--network", "mynet", "--ip", "10.99.0.88", IMAGE, "ip", "address"
        )
        failed = run_cli(worker, "docker", "run", "--name", "c4", "--network", "mynet", IMAGE, "sh", "-c", "exit 7")
        assert failed.code == run_cli(worker, "docker", "start", "--attach", "c4").code == 7
        docker(worker, "rm", "c4")


def test_daemon_that_dies_finds_its_containers_again(lab: Lab) -> None:
    first, worker = lab.nodes[0], lab.nodes[1]
    with attachable(lab):
        run(first, "c1")
        runs = run(worker, "runs")
        run(worker, "ends")
        docker(worker, "create", "--name", "waits", "--network", "mynet", IMAGE)
        keeps = run(worker, "keeps", "--restart", "always")
        before = asked(first, "c1", "runs")
        pids = [docker(worker, "inspect", "--format", "{{.State.Pid}}", name) for name in ("ends", "keeps")]
        worker.kill_daemon()
        worker.exec("kill", "-9", *pids)
        assert fetched(first, "c1", "runs") == runs[:12]
        lab.restart_daemon(worker.name)
        docker(worker, "start", "waits")
        assert asked(first, "c1", "runs") == before
        eventually(lambda: _same(asked(first, "c1", "ends"), set()))

        def began_again() -> None:
            assert len(asked(first, "c1", "keeps")) == 1
            assert fetched(first, "c1", "keeps") == keeps[:12]

        eventually(began_again, 15)
        assert fetched(worker, "waits", "runs") == runs[:12]
        assert drift(worker) == []
        # a restart policy of ours: its sandbox stays while it begins again
        address = asked(first, "c1", "keeps")
        worker.exec("kill", "-9", docker(worker, "inspect", "--format", "{{.State.Pid}}", "keeps"))
        eventually(lambda: _same({docker(worker, "inspect", "--format", "{{.RestartCount}}", "keeps")}, {"1"}))
        eventually(began_again, 15)
        assert asked(first, "c1", "keeps") == address


@pytest.mark.parametrize("place", [0, 1])
def test_what_cannot_be_attached_is_refused_and_leaves_nothing(lab: Lab, place: int) -> None:
    node = lab.nodes[place]
    with attachable(lab):
        run(lab.nodes[0], "taken", "--ip", "10.99.0.9")
        cli(lab.nodes[0], "docker", "network", "create", "--driver", "overlay", "closed")
        before = namespaces(node), docker(node, "ps", "--all", "--quiet")
        closed = (
            "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not manually "
            "attachable"
        )
        for words, options in (
            (closed, ("--network", "closed")),
            ("network ingress not manually attachable", ("--network", "ingress")),
            ("network nosuch not found", ("--network", "nosuch")),
            ("does not belong to", ("--network", "mynet", "--ip", "192.0.2.7")),
            ("already in use", ("--network", "mynet", "--ip", "10.99.0.9")),
            ("MacAddress is not supported", ("--network", "mynet", "--mac-address", "02:42:00:00:00:07")),
        ):
            assert words in refused(node, "run", "--name", "bad", *options, IMAGE)
        assert "network nosuch not found" in refused(node, "network", "connect", "nosuch", "taken")
        assert (namespaces(node), docker(node, "ps", "--all", "--quiet")) == before
        assert inside(node, "", "ls", "/run/netns").split() == sorted(before[0])
