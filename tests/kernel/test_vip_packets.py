"""Virtual addresses and questions for names with real packets, in the sandboxes of one node.

What every balancer must do is said by `tests/contract/test_balancer_contract.py`; this is about the whole sandbox.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from mesh_rig import (
    Node,
    Reply,
    answer_names,
    apply,
    ask,
    ask_again,
    doubt,
    facts_of,
    forget,
    outcomes_again,
    run,
    serve,
    traced,
)

from hivemesh.cnm.node import Planner, Sandbox
from hivemesh.dataplane.plan import plan_overlay
from hivemesh.kernel.api import NamespacePlan
from hivemesh.model.addr import VNI, Address, mac_of
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import AnyItem, Backend, NetworkItem, ServiceItem, TaskItem, key_of
from hivemesh.wire.resolver import RESOLVER_ADDRESS, RESOLVER_PORT
from hivemesh.wire.trace import Fact, Question, Trace

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("version", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
A, B = (NetworkID(f"{name}net".ljust(25, "0")) for name in "ab")
THIRD = {A: 1, B: 2}
FACTS = facts_of(1)


def network(identifier: NetworkID) -> NetworkItem:
    third = THIRD[identifier]
    prefixes = (ipaddress.ip_network(f"10.0.{third}.0/24"), ipaddress.ip_network(f"fd10:0:0:{third}::/64"))
    return NetworkItem(
        id=identifier,
        name=identifier[:4],
        vni=VNI(4096 + third),
        port=4789,
        subnets=tuple(Subnet(prefix=p, gateway=p.network_address + 1) for p in prefixes),
        internal=True,
    )


def address(identifier: NetworkID, last: int, version: int) -> Address:
    third = THIRD[identifier]
    return ipaddress.ip_address(f"10.0.{third}.{last}" if version == 4 else f"fd10:0:0:{third}::{last:x}")


def task(name: str, last: int, *networks: NetworkID) -> Task:
    attachments = tuple(
        Attachment(
            endpoint_id=EndpointID(f"{name}{n[0]}".ljust(25, "0")),
            network_id=n,
            addresses=tuple(ipaddress.ip_interface((address(n, last, v), 24 if v == 4 else 64)) for v in (4, 6)),
            mac=mac_of(ipaddress.IPv4Address(f"10.0.{THIRD[n]}.{last}")),
        )
        for n in networks
    )
    return Task(
        id=TaskID(name.ljust(25, "0")),
        service_id=ServiceID(name),
        service_name=name,
        slot=1,
        spec=TaskSpec(),
        attachments=attachments,
    )


TASKS = {"caller": task("caller", 9, A, B), "a1": task("a1", 11, A), "a2": task("a2", 12, A), "b1": task("b1", 21, B)}
CALLER = TASKS["caller"].id[:12]
VIP = 5


class Cluster:
    """One node: change `backends`, then `apply`."""

    def __init__(self) -> None:
        self.node = Node("n1")
        self.planner = Planner()
        self.backends: dict[NetworkID, tuple[str, ...]] = {A: ("a1", "a2"), B: ("b1",)}

    def services(self) -> dict[NetworkID, tuple[ServiceItem, ...]]:
        return {
            n: (
                ServiceItem(
                    network=n,
                    service=ServiceID(f"s{n[0]}"),
                    name=f"s{n[0]}",
                    vips=(address(n, VIP, 4), address(n, VIP, 6)),
                    backends=tuple(
                        Backend(
                            task=TASKS[name].id, addresses=tuple(i.ip for i in TASKS[name].attachments[0].addresses)
                        )
                        for name in names
                    ),
                ),
            )
            for n, names in self.backends.items()
        }

    def plans(self, *names: str) -> list[NamespacePlan]:
        return [
            self.planner.sandbox(
                Sandbox(
                    task=TASKS[name],
                    networks={a.network_id: network(a.network_id) for a in TASKS[name].attachments},
                    lease=None,
                ),
                FACTS,
                self.services(),
            )
            for name in names or TASKS
        ]

    def apply(self, *names: str) -> None:
        failed = self.node.call(apply, self.plans(*names))
        assert not failed, failed

    def ask(self, protocol: str, to: Address, times: int = 1, *, at: str = CALLER, keep: bool = False) -> Counter[str]:
        replies: list[Reply | str] = self.node.call(
            ask, protocol, str(to), 80 if protocol == "tcp" else 53, times=times, keep=keep, at=at
        )
        return Counter(r.server if isinstance(r, Reply) else r for r in replies)


@pytest.fixture(scope="module")
def started() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        failed = cluster.node.call(apply, [plan_overlay(network(n), FACTS, ()) for n in (A, B)])
        assert not failed, failed
        cluster.apply()
        for name in ("a1", "a2", "b1"):
            cluster.node.call(serve, name, "tcp", 80, at=TASKS[name].id[:12])
            for listen in ("0.0.0.0", "::"):
                cluster.node.call(serve, name, "udp", 53, listen, True, at=TASKS[name].id[:12])
        yield cluster
    finally:
        cluster.node.close()


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.backends = {A: ("a1", "a2"), B: ("b1",)}
    started.apply()
    return started


@FAMILIES
@PROTOCOLS
def test_sandbox_on_two_networks_reaches_the_services_of_both(cluster: Cluster, protocol: str, version: int) -> None:
    assert cluster.ask(protocol, address(A, VIP, version), 4) == {"a1": 2, "a2": 2}
    assert cluster.ask(protocol, address(B, VIP, version), 4) == {"b1": 4}


@FAMILIES
def test_sandbox_on_one_network_has_no_services_of_the_other(cluster: Cluster, version: int) -> None:
    assert str(address(B, VIP, version)) not in cluster.node.call(run, "nft", "list", "ruleset", at="a10000000000")
    (outcome,) = cluster.ask("tcp", address(B, VIP, version), at="a10000000000")
    assert outcome == "OSError"  # no route


def test_connection_may_be_idle_for_days(cluster: Cluster) -> None:
    cluster.ask("tcp", address(A, VIP, 4), keep=True)
    try:
        entries = cluster.node.call(run, "cat", "/proc/net/nf_conntrack", at=CALLER)
    finally:
        cluster.node.call(ask_again)
    (seconds,) = re.findall(rf"tcp +6 (\d+) ESTABLISHED .*dst={address(A, VIP, 4)} ", entries)
    assert int(seconds) > 4 * 24 * 3600


@FAMILIES
@pytest.mark.parametrize("left", [("a2",), ()], ids=["another-lives", "it-was-the-last"])
def test_connection_to_a_backend_that_is_gone_is_reset_at_its_next_packet(
    cluster: Cluster, version: int, left: tuple[str, ...]
) -> None:
    cluster.backends[A] = ("a1",)
    cluster.apply()
    assert cluster.ask("tcp", address(A, VIP, version), keep=True) == {"a1": 1}
    try:
        # Gone without a word, as when its node dies; then the view says so
        cluster.node.call(run, "ip", "link", "set", "eth0", "down", at="a10000000000")
        cluster.backends[A] = left
        cluster.apply("caller")
        gone = [i.ip for i in TASKS["a1"].attachments[0].addresses]
        assert cluster.node.call(forget, CALLER, gone) >= 1  # others were before
    finally:
        outcome = cluster.node.call(outcomes_again)
        cluster.node.call(doubt, ["a10000000000"])
        cluster.apply()
    assert outcome == ["ConnectionResetError"]


@FAMILIES
def test_flushed_tables_come_back_and_old_connections_go_on(cluster: Cluster, version: int) -> None:
    cluster.ask("tcp", address(A, VIP, version), keep=True)
    cluster.node.call(run, "nft", "flush", "ruleset", at=CALLER)
    cluster.node.call(doubt, [CALLER])
    cluster.apply("caller")
    (outcome,) = cluster.node.call(outcomes_again)
    assert outcome in ("a1", "a2")
    assert cluster.ask("tcp", address(A, VIP, version), 4) == {"a1": 2, "a2": 2}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_questions_go_to_the_resolver_and_port_53_stays_free(cluster: Cluster, protocol: str) -> None:
    """In a sandbox without ingress and without a way out; the container has a name server of its own."""
    cluster.node.call(answer_names, protocol, "0.0.0.0", 53, "192.0.2.2", at=CALLER)
    cluster.node.call(answer_names, protocol, RESOLVER_ADDRESS, RESOLVER_PORT, "192.0.2.1", at=CALLER)
    for server, answer in ((RESOLVER_ADDRESS, "192.0.2.1"), ("127.0.0.1", "192.0.2.2"), ("10.0.1.9", "192.0.2.2")):
        transport = f"+{'' if protocol == 'tcp' else 'no'}tcp"
        command = ("dig", f"@{server}", "+short", "+time=3", "+tries=1", transport, "web.test", "A")
        assert cluster.node.call(run, *command, at=CALLER).strip() == answer, server
    tracked = cluster.node.call(run, "cat", "/proc/net/nf_conntrack", at=CALLER)
    assert "dst=127.0.0.1 " in tracked
    assert RESOLVER_ADDRESS not in tracked


def trace(cluster: Cluster, target: str, source: str = "caller", *, probe: bool = False) -> Trace:
    """From one of the tasks."""
    services = [item for found in cluster.services().values() for item in found]
    items: list[AnyItem] = [network(A), network(B), *services, *(TaskItem(task=t) for t in TASKS.values())]
    plans = [*cluster.plans(), *(plan_overlay(network(n), FACTS, ()) for n in (A, B))]
    question = Question(source=TASKS[source].id, target=target, probe=probe)
    found: Trace = cluster.node.call(traced, plans, {key_of(i): i for i in items}, question, str(FACTS.vtep))
    return found


def findings(cluster: Cluster, target: str, source: str = "caller") -> list[Fact]:
    found = trace(cluster, target, source)
    hops = [*found.begin, *(hop for way in found.ways for hop in way.hops)]
    return [fact for hop in hops for fact in hop.facts if not fact.agrees]


def test_trace_of_a_virtual_address_names_flushed_backends(cluster: Cluster) -> None:
    target = f"{address(A, VIP, 4)}:80"
    assert findings(cluster, target) == []
    cluster.node.call(run, "nft", "flush", "map", "inet", "hivemesh-vips", "backends4", at=CALLER)
    (found,) = findings(cluster, target)
    refused = trace(cluster, target, probe=True)
    assert refused.sent > refused.answered == 0
    assert found.what == "nft inet hivemesh-vips"
    assert found.proof == f"ip netns exec {CALLER} nft list table inet hivemesh-vips"
    cluster.node.call(doubt, [CALLER])
    cluster.apply()
    healed = trace(cluster, target, probe=True)
    assert (healed.finding, healed.answered) == (None, healed.sent)
    assert all(way.met == 1 for way in healed.ways)


def test_trace_of_a_name_tells_a_silent_resolver_from_one_with_old_news(cluster: Cluster) -> None:
    (found,) = findings(cluster, "sb:80", "b1")
    assert found.what == "answer for sb"
    assert "the resolver does not answer" in found.kernel
    cluster.node.call(answer_names, "udp", RESOLVER_ADDRESS, RESOLVER_PORT, "192.0.2.1", at=TASKS["b1"].id[:12])
    (found,) = findings(cluster, "sb:80", "b1")
    assert found.kernel == "192.0.2.1"
    assert "no news of this name" in found.cause
