"""Which events contradict a plan."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from hivemesh.dataplane.suspicion import EVERYTHING, WantedKeys, contradicts, stranger
from hivemesh.kernel.api import (
    HOST,
    Bridge,
    FdbEntry,
    LinkAddress,
    NamespacePlan,
    Neighbor,
    Route,
    Vxlan,
)
from hivemesh.kernel.monitor import ADDRESS, FDB, LOST, NAMESPACE, NEIGHBOR, NFT, ROUTE, Change
from hivemesh.model.addr import MAC, VNI
from hivemesh.wire.rtnetlink import RTN_UNICAST, AddressSeen, FdbSeen, NeighborSeen, RouteSeen

M1, M2 = MAC("02:42:0a:00:00:01"), MAC("02:42:0a:00:00:02")
BR0, VXLAN0, OTHER = 2, 3, 9
INDICES = {"br0": BR0, "vxlan0": VXLAN0, "other": OTHER}
VTEP = ip_address("198.51.100.12")
PLAN = NamespacePlan(
    namespace="1-net",
    mark="hivemesh/network/net",
    links=(
        Bridge(name="br0", mtu=1450),
        Vxlan(name="vxlan0", vni=VNI(4096), port=4789, local=VTEP, mtu=1450, master="br0"),
    ),
    addresses=frozenset({LinkAddress(link="br0", address=ip_interface("10.0.0.1/24"))}),
    routes=frozenset({Route(destination=ip_network("10.1.0.0/24"), link="br0", gateway=ip_address("10.0.0.7"))}),
    neighbors=frozenset({Neighbor(link="vxlan0", address=ip_address("10.0.0.5"), mac=M1)}),
    fdb=frozenset({FdbEntry(link="vxlan0", mac=M1, vtep=VTEP)}),
)


def address(text: str, index: int = BR0, permanent: bool = True) -> AddressSeen:
    return AddressSeen(index, ip_interface(text), permanent, text.startswith("fe80"))


def route(gateway: str, protocol: int) -> RouteSeen:
    return RouteSeen(ip_network("10.1.0.0/24"), BR0, ip_address(gateway), 254, False, protocol, RTN_UNICAST)


def neighbor(text: str, mac: MAC, permanent: bool = True) -> NeighborSeen:
    return NeighborSeen(VXLAN0, ip_address(text), mac, permanent)


@pytest.mark.parametrize(
    "change",
    [
        Change("1-net", FDB, False, FdbSeen(VXLAN0, M1, VTEP, True)),
        Change("1-net", FDB, True, FdbSeen(VXLAN0, M2, VTEP, True)),
        Change("1-net", FDB, False, FdbSeen(OTHER, M2, VTEP, True)),
        Change("1-net", NEIGHBOR, False, neighbor("10.0.0.5", M1)),
        Change("1-net", NEIGHBOR, False, neighbor("10.0.0.6", M1, permanent=False)),
        Change("1-net", NEIGHBOR, True, neighbor("10.0.0.6", M1)),
        Change("1-net", ADDRESS, False, address("10.0.0.1/24")),
        Change("1-net", ADDRESS, False, address("fe80::1/64")),
        Change("1-net", ADDRESS, False, address("10.0.0.9/24", OTHER)),
        Change("1-net", ADDRESS, False, address("2001:db8::1/64", permanent=False)),
        Change("1-net", ROUTE, False, route("10.0.0.7", 117)),
        Change("1-net", ROUTE, True, route("10.0.0.8", 117)),
        Change("1-net", ROUTE, False, route("10.0.0.8", 2)),
    ],
)
def test_echoes_and_noise_contradict_nothing(change: Change) -> None:
    assert contradicts(PLAN, INDICES, change, WantedKeys()) is None


@pytest.mark.parametrize(
    "change",
    [
        Change("1-net", FDB, True, FdbSeen(VXLAN0, M1, VTEP, True)),
        Change("1-net", FDB, False, FdbSeen(VXLAN0, M2, VTEP, True)),
        Change("1-net", FDB, False, FdbSeen(VXLAN0, M1, ip_address("198.51.100.13"), True)),
        Change("1-net", FDB, False, FdbSeen(VXLAN0, M1, VTEP, False)),
        Change("1-net", NEIGHBOR, True, neighbor("10.0.0.5", MAC(""))),
        Change("1-net", NEIGHBOR, False, neighbor("10.0.0.5", M1, permanent=False)),
        Change("1-net", NEIGHBOR, False, neighbor("10.0.0.6", M1)),
        Change("1-net", ADDRESS, True, address("10.0.0.1/24")),
        Change("1-net", ADDRESS, False, address("10.0.0.2/24")),
        Change("1-net", ROUTE, True, route("10.0.0.7", 117)),
        Change("1-net", ROUTE, False, route("10.0.0.8", 117)),
        Change("1-net", ROUTE, False, route("10.0.0.8", 3)),
        Change("1-net", NFT),
    ],
)
def test_contradiction_puts_that_kind_in_doubt(change: Change) -> None:
    assert contradicts(PLAN, INDICES, change, WantedKeys()) == frozenset({change.kind})


def test_lost_events_put_everything_in_doubt_and_a_lost_name_only_the_namespace() -> None:
    assert contradicts(PLAN, INDICES, Change("1-net", LOST), WantedKeys()) == EVERYTHING
    assert contradicts(PLAN, INDICES, Change("1-net", NAMESPACE), WantedKeys()) == frozenset()


def test_only_the_hosts_own_addresses_are_facts_to_look_at_again() -> None:
    host = NamespacePlan(namespace=HOST, mark="", links=(Bridge(name="br0", mtu=1500),))
    assert stranger(host, INDICES, Change(HOST, ADDRESS, False, address("192.0.2.1/24", OTHER)))
    assert not stranger(host, INDICES, Change(HOST, ADDRESS, False, address("192.0.2.1/24", BR0)))
    assert not stranger(host, INDICES, Change(HOST, ADDRESS, False, address("fe80::1/64", OTHER)))
    assert not stranger(PLAN, INDICES, Change("1-net", ADDRESS, False, address("192.0.2.1/24", OTHER)))
