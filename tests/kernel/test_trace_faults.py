"""Traces across two nodes with real kernels: healthy ones raise nothing, each fault is named where it is."""

import ipaddress
from collections.abc import Iterator

import pytest
from mesh_rig import Placed, Rig, apply, doubt, examined, hush, run, serve, traced

from faults import FAULTS, SANDBOX, Fault
from hivemesh.dataplane.plan import GatewayLease
from hivemesh.model.service import PortConfig
from hivemesh.wire.control import AnyItem, View, key_of
from hivemesh.wire.trace import Hop, Question

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


def hops(rig: Rig, target: str = ":8080") -> list[tuple[int, Hop]]:
    """All hops from outside by node 1 to its first backend and back, with the number of the node that saw each."""
    items: list[AnyItem] = [*rig.publishes(1), rig.network(1)]
    view: View = {key_of(item): item for item in items}
    question = Question(target=target)
    begin, ways = rig.nodes[1].call(traced, rig.plans(1), view, question, "198.51.100.11")
    found = [(1, hop) for hop in begin]
    for here, leg in ways:
        found += [(1, hop) for hop in here]
        if leg is not None:
            found += [(2, hop) for hop in rig.nodes[2].call(examined, rig.plans(2), leg)]
    return found


def findings(rig: Rig) -> list[tuple[int, Hop]]:
    return [(node, hop) for node, hop in hops(rig) if hop.finding is not None]


def test_healthy_mesh_raises_nothing(rig: Rig) -> None:
    for _ in range(5):
        seen = hops(rig)
        assert len(seen) > 10
        assert {node for node, _ in seen} == {1, 2}
        assert not [hop for _, hop in seen if hop.finding]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_where_it_is(rig: Rig, fault: Fault) -> None:
    node = rig.nodes[fault.node]
    for command in fault.commands:
        node.call(run, *command.split(), at=fault.place)
    try:
        node_number, hop = findings(rig)[0]
        found = hop.finding
        assert found is not None
        assert (node_number, hop.namespace) == fault.where
        assert fault.what in found.what
        assert fault.cause in found.cause
        assert found.proof.startswith(
            f"ip netns exec {hop.namespace} " if hop.namespace else ("ip ", "nft ", "sysctl ")
        )
    finally:
        for command in fault.undo:
            node.call(run, *command.split(), at=fault.place)
        plans = rig.plans(fault.node)
        node.call(doubt, [plan.namespace for plan in plans])
        failed = node.call(apply, plans)
    assert not failed
    assert findings(rig) == []


def test_server_that_does_not_listen_is_named(rig: Rig) -> None:
    rig.nodes[2].call(hush, "web")
    try:
        node, hop = findings(rig)[0]
        assert (node, hop.namespace) == (2, SANDBOX)
        assert hop.finding is not None
        assert hop.finding.what == "server on port 80/tcp"
    finally:
        rig.nodes[2].call(serve, "web", "tcp", 80, at=SANDBOX)


def test_service_without_backends_is_named(rig: Rig) -> None:
    rig.tasks = []
    try:
        rig.apply()
        node, hop = findings(rig)[0]
        assert (node, hop.namespace) == (1, "ingress_sbox")
        assert hop.finding is not None
        assert hop.finding.kernel == "no backend takes new connections"
    finally:
        rig.tasks = [WEB]
        rig.apply()
