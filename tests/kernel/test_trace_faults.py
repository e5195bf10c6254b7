"""Traces across two nodes with real kernels: healthy ones raise nothing, each fault is named where it is."""

import ipaddress
from collections.abc import Iterator

import pytest
from mesh_rig import Placed, Rig, apply, doubt, examined, hush, look_out_for, run, serve, traced

from faults import BETWEEN, FAULTS, FOUND, SANDBOX, Fault, lost
from hivemesh.dataplane.plan import GatewayLease
from hivemesh.model.service import PortConfig
from hivemesh.trace.watching import MOST
from hivemesh.wire.control import AnyItem, View, key_of
from hivemesh.wire.trace import PROBE, Examination, Examined, Fact, Hop, Question, Trace

pytestmark = pytest.mark.kernel

PORT = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="ingress")
WEB = Placed(
    "web",
    2,
    22,
    GatewayLease(v4=ipaddress.IPv4Interface("172.18.0.22/16"), v6=ipaddress.IPv6Interface("fd77:1::22/64")),
    (PORT,),
)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig(tasks=[WEB], services={"web": (PORT,)})
    try:
        made.start()
        made.apply()
        made.nodes[2].call(serve, "web", "tcp", 80, at=SANDBOX)
        yield made
    finally:
        made.stop()


def trace(rig: Rig, target: str = ":8080", *, probe: bool = True, count: int = 0) -> Trace:
    """From outside by node 1 to its backend and back."""
    items: list[AnyItem] = [*rig.publishes(1), rig.network(1)]
    view: View = {key_of(item): item for item in items}

    def ask(vtep: str, examination: Examination) -> Examined:
        number = int(vtep[-1])
        found: Examined = rig.nodes[number].call(examined, rig.plans(number), examination, vtep)
        return found

    rig.nodes[1].ask = ask
    question = Question(target=target, probe=probe, count=count)
    found: Trace = rig.nodes[1].call(traced, rig.plans(1), view, question, "198.51.100.11")
    return found


def all_hops(found: Trace) -> list[Hop]:
    return [*found.begin, *(hop for way in found.ways for hop in way.hops), *found.end]


def finding(rig: Rig, *, probe: bool = False) -> tuple[int, Hop, Fact] | None:
    """The number of the node, the hop and the fact that is blamed."""
    blamed = trace(rig, probe=probe).finding
    return None if blamed is None else (int(blamed[0].node[1:]), *blamed)


def test_healthy_mesh_raises_nothing_and_every_hop_sees_the_probe(rig: Rig) -> None:
    for _ in range(3):
        found = trace(rig)
        assert found.finding is None
        hops = all_hops(found)
        assert len(hops) > 10
        assert {hop.node for hop in hops} == {"n1", "n2"}
        assert all(hop.probe is not None and hop.probe.kernel == "seen" for hop in hops)
        assert all(way.said.startswith("answered in ") for way in found.ways)
        # the two ways are IPv4 and IPv6, and callers ask by IPv4
        assert (found.sent, found.answered, [way.met for way in found.ways]) == (1, 1, [1, 0])


def opened(rig: Rig) -> int:
    """How many connections servers of the task's sandbox have ever got."""
    rows = [line.split() for line in rig.nodes[2].call(run, "cat", "/proc/net/snmp", at=SANDBOX).splitlines()]
    names, values = (row for row in rows if row[0] == "Tcp:")
    return int(values[names.index("PassiveOpens")])


def test_no_server_gets_a_connection_by_a_probe_and_none_stays_half_open(rig: Rig) -> None:
    before = opened(rig)
    assert trace(rig, count=20).answered == 20
    assert opened(rig) == before
    assert rig.nodes[2].call(run, "ss", "-Htn", "state", "syn-recv", at=SANDBOX) == ""


def test_node_that_cannot_look_out_for_probes_is_no_finding(rig: Rig) -> None:
    rig.nodes[2].call(look_out_for, MOST)
    found = trace(rig)
    assert found.finding is None
    assert all(hop.probe is not None for hop in all_hops(found) if hop.node == "n1")
    assert all(hop.probe is None for hop in all_hops(found) if hop.node == "n2")
    assert all(way.said.startswith("answered in ") for way in found.ways)
    rig.nodes[1].call(look_out_for, MOST)
    found = trace(rig)
    assert (found.finding, found.sent) == (None, 0)
    assert f"{MOST} traces already" in found.notes[0]
    for number in (1, 2):
        rig.nodes[number].call(look_out_for, 0)
    assert trace(rig).notes[0].startswith("n1 sent the probes to itself")


def test_part_of_the_packets_lost_is_told_where(rig: Rig) -> None:
    between = rig.underlay[0]
    for command in lost("ip daddr 198.51.100.12 numgen inc mod 2 0"):
        between.call(run, *command.split())
    try:
        found = trace(rig, count=20)
    finally:
        for command in FOUND:
            between.call(run, *command.split())
    assert 0 < found.answered < 20
    assert found.finding is not None
    hop, fact = found.finding
    assert (hop.node, fact.what) in {("n2", PROBE), ("n1", PROBE)}
    assert " seen" in fact.kernel


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_where_it_is(rig: Rig, fault: Fault) -> None:
    node = rig.underlay[0] if fault.node == BETWEEN else rig.nodes[fault.node]
    for command in fault.commands:
        node.call(run, *command.split(), at=fault.place)
    try:
        blamed = finding(rig, probe=fault.probe)
        assert blamed is not None
        number, hop, found = blamed
        assert (number, hop.namespace) == fault.where
        assert fault.what in found.what
        assert fault.cause in found.cause
        here = ("ip ", "nft ", "sysctl ", "tcpdump ")
        assert found.proof.startswith(f"ip netns exec {hop.namespace} " if hop.namespace else here)
    finally:
        for command in fault.undo:
            node.call(run, *command.split(), at=fault.place)
        if fault.node != BETWEEN:
            plans = rig.plans(fault.node)
            node.call(doubt, [plan.namespace for plan in plans])
            assert not node.call(apply, plans)
    assert finding(rig, probe=fault.probe) is None


def test_server_that_does_not_listen_is_named(rig: Rig) -> None:
    rig.nodes[2].call(hush, "web")
    try:
        blamed = finding(rig)
        assert blamed is not None
        assert (blamed[0], blamed[1].namespace) == (2, SANDBOX)
        assert blamed[2].what == "server on port 80/tcp"
        refused = next(hop.probe for hop in all_hops(trace(rig)) if hop.probe is not None and not hop.probe.agrees)
        assert refused.kernel == "seen, and reset"
    finally:
        rig.nodes[2].call(serve, "web", "tcp", 80, at=SANDBOX)


def test_service_without_backends_is_named(rig: Rig) -> None:
    rig.tasks = []
    try:
        rig.apply()
        blamed = finding(rig, probe=True)
        assert blamed is not None
        assert (blamed[0], blamed[1].namespace) == (1, "ingress_sbox")
        assert blamed[2].kernel == "no backend takes new connections"
    finally:
        rig.tasks = [WEB]
        rig.apply()
