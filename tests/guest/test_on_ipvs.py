"""The mesh across three nodes, and a node's whole agent, on IPVS: what only a kernel that has it can show."""

import ipaddress
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_rig import CLIENT, V4, V6, Placed, Reply, Rig, ask, ask_again, counted, differences, run, see, serve

from hivemesh.dataplane.plan import GatewayLease
from hivemesh.kernel import ipvs
from hivemesh.model.service import Balance, PortConfig
from hivemesh.wire.control import AnyItem, key_of

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(ipvs.missing()), reason="this kernel has no IPVS; `make test-guest` runs this"),
]

WEB = (PortConfig(published_port=8090, target_port=80), PortConfig(published_port=8090, target_port=53, protocol="udp"))
FAMILIES = pytest.mark.parametrize("version", [4, 6])
CASES = Path(__file__).parents[1] / "kernel" / "inside" / "worker_cases.py"
PREPARE = 'mount -t tmpfs tmpfs /run && exec "$@"'


def placed(name: str, node: int, last: int, *ports: PortConfig) -> Placed:
    v4, v6 = ipaddress.IPv4Interface(f"172.18.0.{last}/16"), ipaddress.IPv6Interface(f"fd77:1::{last:x}/64")
    return Placed(name, node, last if ports else 0, GatewayLease(v4=v4, v6=v6), ports)


WEB1, WEB2, BOX1 = placed("web1", 2, 21, *WEB), placed("web2", 3, 22, *WEB), placed("box1", 1, 9)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig(tasks=[WEB1, WEB2, BOX1], services={"web": WEB}, balance=Balance(engine="ipvs"))
    try:
        rig.start()
        rig.apply()
        for task in (WEB1, WEB2):
            rig.nodes[task.node].call(serve, task.name, "tcp", 80, at=task.sandbox)
            rig.nodes[task.node].call(serve, task.name, "udp", 53, "0.0.0.0", at=task.sandbox)
            rig.nodes[task.node].call(serve, task.name, "udp", 53, "::", True, at=task.sandbox)
        yield rig
    finally:
        rig.stop()


def node_address(number: int, version: int) -> str:
    return f"{V4}.1{number}" if version == 4 else f"{V6}1{number}"


def served(replies: list[Reply | str]) -> Counter[tuple[str, str]]:
    return Counter((r.server, r.seen) if isinstance(r, Reply) else (r, "") for r in replies)


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_client_through_any_node_is_spread_evenly_and_seen_as_itself(rig: Rig, protocol: str, version: int) -> None:
    client = CLIENT[0 if version == 4 else 1]
    for number in (1, 2):
        found = served(rig.client.call(ask, protocol, node_address(number, version), 8090, times=6))
        assert found == {("web1", client): 3, ("web2", client): 3}


@FAMILIES
def test_the_node_itself_and_its_containers_are_seen_as_the_node(rig: Rig, version: int) -> None:
    node = node_address(1, version)
    both = {("web1", node), ("web2", node)}
    for host in (node, "127.0.0.1" if version == 4 else "::1"):
        assert served(rig.nodes[1].call(ask, "tcp", host, 8090, times=2)).keys() == both
    assert served(rig.nodes[1].call(ask, "tcp", node, 8090, times=2, at=BOX1.sandbox)).keys() == both


@FAMILIES
def test_connections_are_counted_by_backend(rig: Rig, version: int) -> None:
    node = rig.nodes[1]
    items: list[AnyItem] = [*rig.publishes(1), rig.network(1)]
    node.call(see, {key_of(item): item for item in items}, rig.plans(1))
    backends = ("10.0.0.21", "10.0.0.22") if version == 4 else ("fd10::15", "fd10::16")
    ends = [("web", "tcp", "8090", backend) for backend in backends]

    def settled() -> list[int]:
        """The kernel sums up every other second."""
        seen: list[int] = []
        while True:
            found = node.call(counted)["hivemesh_connections"]
            last, seen = seen, [found[end] for end in ends]
            if seen == last:
                return seen
            time.sleep(3)

    before = settled()
    rig.client.call(ask, "tcp", node_address(1, version), 8090, times=4)
    assert [now - then for now, then in zip(settled(), before, strict=True)] == [2, 2]


@FAMILIES
def test_connections_that_ipvs_has_no_backend_for_are_counted_as_refused(rig: Rig, version: int) -> None:
    tasks, node = rig.tasks, rig.nodes[1]
    try:
        rig.tasks = [BOX1]
        rig.apply()
        items: list[AnyItem] = [*rig.publishes(1), rig.network(1)]
        node.call(see, {key_of(item): item for item in items}, rig.plans(1))
        port = ("web", "tcp", "8090")
        before = node.call(counted)["hivemesh_refused_connections"][port]
        assert rig.client.call(ask, "tcp", node_address(1, version), 8090, times=3) == ["ConnectionRefusedError"] * 3
        assert node.call(counted)["hivemesh_refused_connections"][port] == before + 3
    finally:
        rig.tasks = tasks
        rig.apply()


def test_kernel_holds_what_the_plan_says_and_ipvsadm_shows_it(rig: Rig) -> None:
    assert rig.nodes[1].call(differences, rig.plans(1)) == []
    shown = rig.nodes[1].call(run, "ipvsadm", "-Sn", at="ingress_sbox")
    assert shown.count("-r 10.0.0.21:0 -m -w 1") == shown.count("-r [fd10::15]:0 -m -w 1") == 2


def test_backend_that_leaves_keeps_its_connections_and_the_last_one_leaves_refusal(rig: Rig) -> None:
    try:
        old = rig.client.call(ask, "tcp", f"{V4}.11", 8090, times=2, keep=True)
        assert {r.server for r in old} == {"web1", "web2"}
        rig.tasks = [placed("web1", 2, 21, PortConfig(published_port=1, target_port=1)), WEB2, BOX1]
        rig.apply()
        assert {s for s, _ in served(rig.client.call(ask, "tcp", f"{V4}.11", 8090, times=4))} == {"web2"}
        rig.tasks = [WEB1, WEB2, BOX1]
        rig.services = {"web": ()}
        rig.apply()
        assert rig.client.call(ask, "tcp", f"{V4}.11", 8090) == ["ConnectionRefusedError"]
    finally:
        rig.tasks, rig.services = [WEB1, WEB2, BOX1], {"web": WEB}
        rig.apply()
        assert {r.server for r in rig.client.call(ask_again)} == {"web1", "web2"}


def test_agent_serves_through_ipvs() -> None:
    with tempfile.TemporaryDirectory(prefix="hm") as folder:  # a short name: the path of a socket has 107 bytes
        command = [
            "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
            sys.executable, "-m", "pytest", str(CASES), "-k", "published_task_answers_on_every",
            "-p", "no:cacheprovider", f"--basetemp={folder}/in",
        ]  # fmt: skip
        environment = {**os.environ, "HIVEMESH_TEST_BALANCER": "ipvs"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
