"""Plans are pure: what each namespace should hold, from the node view alone."""

import ipaddress
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.dataplane.balancer.api import published
from hivemesh.dataplane.balancer.nftables import slots_of
from hivemesh.dataplane.plan import (
    GatewayLease,
    HostFacts,
    HostPort,
    plan_host,
    plan_ingress,
    plan_overlay,
    plan_sandbox,
)
from hivemesh.dataplane.plan.balancing import mesh_part
from hivemesh.dataplane.plan.names_rules import NAMES
from hivemesh.kernel.api import HOST, Bridge, FdbEntry, NamespacePlan, Neighbor, Route, Veth, Vxlan
from hivemesh.model.addr import MAC, VNI, Address, Interface, mac_of
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import Door, PortConfig, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, PeerItem, PublishItem
from hivemesh.wire.nft import Goto, Map, Table, host_u32, immediate, protocol_port

FACTS = HostFacts(
    vtep=IPv4Address("198.51.100.11"),
    vtep_mtu=1500,
    node_v4=IPv4Address("198.51.100.11"),
    node_v6=IPv6Address("fd00::11"),
    gateway4=IPv4Interface("172.18.0.1/16"),
    gateway6=IPv6Interface("fd77::1/64"),
)
LEASE = GatewayLease(v4=IPv4Interface("172.18.0.9/16"), v6=IPv6Interface("fd77::9/64"))
INGRESS, USER, SECOND = (NetworkID(f"{name:0<25}") for name in ("ingress", "user", "second"))


def subnet(prefix: str) -> Subnet:
    network = ipaddress.ip_network(prefix)
    return Subnet(prefix=network, gateway=network.network_address + 1)


def attachment(network: NetworkID, last: int, name: str = "ep") -> Attachment:
    third = {INGRESS: 0, USER: 1, SECOND: 2}[network]
    addresses: tuple[Interface, ...] = (
        IPv4Interface(f"10.0.{third}.{last}/24"),
        IPv6Interface(f"fd10:0:0:{third}::{last:x}/64"),
    )
    return Attachment(
        endpoint_id=EndpointID(f"{name}{third}{last}".ljust(25, "x")),
        network_id=network,
        addresses=addresses,
        mac=mac_of(IPv4Address(f"10.0.{third}.{last}")),
    )


def network(identifier: NetworkID, *, own: int | None = None, mtu: int = 0) -> NetworkItem:
    third = {INGRESS: 0, USER: 1, SECOND: 2}[identifier]
    return NetworkItem(
        id=identifier,
        name=identifier.rstrip("0"),
        vni=VNI(4096 + third),
        port=4789,
        subnets=(subnet(f"10.0.{third}.0/24"), subnet(f"fd10:0:0:{third}::/64")),
        ingress=identifier == INGRESS,
        mtu=mtu,
        own=attachment(identifier, own, "own") if own else None,
    )


def peer(last: int, vtep: str, identifier: NetworkID = USER, name: str = "peer") -> PeerItem:
    end = attachment(identifier, last, name)
    return PeerItem(
        network=identifier,
        endpoint=end.endpoint_id,
        addresses=end.addresses,
        mac=end.mac,
        vtep=ipaddress.ip_address(vtep),
    )


def task(*attachments: Attachment, ports: tuple[PortConfig, ...] = ()) -> Task:
    return Task(
        id=TaskID("task" + "0" * 21),
        service_id=ServiceID("service"),
        service_name="web",
        slot=1,
        spec=TaskSpec(),
        ports=ports,
        attachments=attachments,
    )


def publish(port: int, *lasts: int, protocol: str = "tcp", six: bool = True) -> PublishItem:
    return PublishItem(
        service=ServiceID("service"),
        service_name="web",
        protocol=protocol,
        port=port,
        backends=tuple(
            Backend(
                task=TaskID(f"t{last}"),
                addresses=tuple(i.ip for i in attachment(INGRESS, last).addresses)[: 2 if six else 1],
            )
            for last in lasts
        ),
    )


def the_map(plan: NamespacePlan | Table, name: str) -> Map:
    tables = (plan,) if isinstance(plan, Table) else plan.tables
    return next(m for table in tables for m in table.maps if m.name == name)


# --- overlay ---------------------------------------------------------------------------------------------------------


def test_overlay_knows_peers_of_other_nodes_in_both_families() -> None:
    here = peer(5, "198.51.100.11")
    there = peer(6, "198.51.100.12")
    elsewhere = peer(7, "198.51.100.12", INGRESS)
    plan = plan_overlay(network(USER), FACTS, [here, there, elsewhere])
    assert plan.namespace == "1-user000000"
    assert plan.mark == f"hivemesh/network/{USER}"
    assert plan.fdb == {FdbEntry(link="vxlan0", mac=MAC("02:42:0a:00:01:06"), vtep=there.vtep)}
    assert {n.address for n in plan.neighbors} == {IPv4Address("10.0.1.6"), IPv6Address("fd10:0:0:1::6")}
    bridge, vxlan = plan.links
    assert isinstance(bridge, Bridge)
    assert isinstance(vxlan, Vxlan)
    assert (bridge.mtu, vxlan.mtu, vxlan.vni, vxlan.local) == (1450, 1450, 4097, FACTS.vtep)
    assert {str(a.address) for a in plan.addresses} == {"10.0.1.1/24", "fd10:0:0:1::1/64"}
    assert plan.sysctls["net/bridge/bridge-nf-call-iptables"] == "0"


@pytest.mark.parametrize(
    ("vtep", "measured", "option", "mtu"),
    [
        ("198.51.100.11", 1500, 0, 1450),
        ("198.51.100.11", 9000, 0, 8950),
        ("198.51.100.11", 9000, 1400, 1350),
        ("fd00::11", 1500, 0, 1430),
    ],
)
def test_overlay_mtu_is_the_underlays_less_the_headers(vtep: str, measured: int, option: int, mtu: int) -> None:
    facts = replace(FACTS, vtep=ipaddress.ip_address(vtep), vtep_mtu=measured)
    assert {link.mtu for link in plan_overlay(network(USER, mtu=option), facts, ()).links} == {mtu}


def test_address_claimed_by_two_peers_goes_to_the_same_one_everywhere() -> None:
    claims = [peer(6, "198.51.100.12", name="b"), peer(6, "198.51.100.13", name="a")]
    plans = [plan_overlay(network(USER), FACTS, order) for order in (claims, claims[::-1])]
    assert plans[0] == plans[1]
    assert {str(f.vtep) for f in plans[0].fdb} == {"198.51.100.13"}


def test_overlay_with_two_subnets_of_a_family_forwards_between_them() -> None:
    one = network(USER)
    two = NetworkItem(
        id=one.id, name=one.name, vni=one.vni, port=one.port, subnets=(*one.subnets, subnet("10.9.0.0/24"))
    )
    sysctls = plan_overlay(two, FACTS, ()).sysctls
    assert (sysctls["net/ipv4/ip_forward"], sysctls["net/ipv6/conf/all/forwarding"]) == ("1", "0")
    plan = plan_sandbox(task(attachment(USER, 5)), {USER: two}, FACTS, None)
    assert plan.routes == {
        Route(destination=ipaddress.ip_network("10.9.0.0/24"), link="eth0", gateway=IPv4Address("10.0.1.1"))
    }


# --- sandboxes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "lease", "masters"),
    [
        ((INGRESS, USER, SECOND), LEASE, ["1-ingress000", HOST, "1-user000000", "1-second0000"]),
        ((SECOND, USER), LEASE, [HOST, "1-second0000", "1-user000000"]),
        ((USER,), None, ["1-user000000"]),
        ((), LEASE, [HOST]),
        ((USER, INGRESS), LEASE, ["1-ingress000", HOST, "1-user000000"]),
    ],
)
def test_interfaces_are_ingress_then_gateway_then_networks_as_listed(
    networks: tuple[NetworkID, ...], lease: GatewayLease | None, masters: list[str]
) -> None:
    plan = plan_sandbox(task(*(attachment(n, 5) for n in networks)), {n: network(n) for n in networks}, FACTS, lease)
    assert plan.namespace == "task00000000"
    assert [link.name for link in plan.links] == [f"eth{n}" for n in range(len(masters))]
    assert [link.outer.namespace for link in plan.links if isinstance(link, Veth)] == masters
    defaults = {str(r.destination) for r in plan.routes if r.table == 254 and not r.destination.prefixlen}
    assert defaults == ({"0.0.0.0/0", "::/0"} if lease else set())


def test_network_that_left_the_view_is_left_out() -> None:
    both = task(attachment(USER, 5), attachment(SECOND, 5))
    plan = plan_sandbox(both, {SECOND: network(SECOND)}, FACTS, LEASE)
    assert [link.name for link in plan.links] == ["eth0", "eth1"]


def test_sandbox_outside_ingress_has_no_rules_of_the_mesh() -> None:
    plan = plan_sandbox(task(attachment(USER, 5)), {USER: network(USER)}, FACTS, LEASE)
    assert (plan.tables, plan.rules) == ((NAMES,), frozenset())
    assert not any(r.table == 4900 for r in plan.routes)


def word(port: int) -> bytes:
    return port.to_bytes(2, "big")


def test_published_ports_become_target_ports_by_protocol() -> None:
    ports = (
        PortConfig(published_port=8090, target_port=80),
        PortConfig(published_port=8091, target_port=80),
        PortConfig(published_port=8090, target_port=53, protocol="udp"),
        PortConfig(published_port=9090, target_port=90, publish_mode="host"),
    )
    plan = plan_sandbox(task(attachment(INGRESS, 5), ports=ports), {INGRESS: network(INGRESS)}, FACTS, LEASE)
    assert the_map(plan, "tcp_ports").elements == {word(8090): word(80), word(8091): word(80)}
    assert the_map(plan, "udp_ports").elements == {word(8090): word(53)}
    by_mark = [r for r in plan.rules if r.mask]
    assert {r.family for r in by_mark} == {2, 10}
    assert {(host_u32(r.mark), host_u32(r.mask)) for r in by_mark} == {
        (bytes([10, 0, 0, 0]), bytes([255, 255, 255, 0]))
    }


def test_without_udp_there_is_neither_a_route_chain_nor_a_mark_rule() -> None:
    ports = (PortConfig(published_port=8090, target_port=80),)
    plan = plan_sandbox(task(attachment(INGRESS, 5), ports=ports), {INGRESS: network(INGRESS)}, FACTS, LEASE)
    assert plan.tables[0].chain("reply") is None
    assert all(r.source is not None for r in plan.rules)


def test_sctp_is_asked_at_the_gateway_address_and_answers_by_its_mark() -> None:
    ports = (PortConfig(published_port=9, target_port=7, protocol="sctp"),)
    doors = (Door(protocol="sctp", port=9, number=61000),)
    made = msgspec.structs.replace(task(attachment(INGRESS, 5), ports=ports), doors=doors)
    plan = plan_sandbox(made, {INGRESS: network(INGRESS)}, FACTS, LEASE)
    assert the_map(plan, "sctp_ports").elements == {word(61000): word(7)}
    assert plan.tables[0].chain("reply") is not None
    assert {r.family for r in plan.rules if r.mask} == {2, 10}


# --- the host --------------------------------------------------------------------------------------------------------


def host(facts: HostFacts = FACTS) -> NamespacePlan:
    port = HostPort(protocol="udp", port=5353, target=53, v4=IPv4Address("172.18.0.9"), v6=IPv6Address("fd77::9"))
    vteps: list[Address] = [IPv4Address("198.51.100.12"), IPv6Address("fd00::12")]
    return plan_host(facts, [publish(8090, 5), publish(8091)], [port], vteps, 4789)


def test_host_sends_published_ports_to_the_sandbox_also_without_backends() -> None:
    plan = host()
    assert plan.namespace == HOST
    assert set(the_map(plan, "published").elements) == {protocol_port("tcp", 8090), protocol_port("tcp", 8091)}
    assert the_map(plan, "host_ports4").elements == {protocol_port("udp", 5353): bytes([172, 18, 0, 9, 0, 53, 0, 0])}
    assert set(the_map(plan, "vteps4").elements) == {bytes([198, 51, 100, 12])}
    assert set(the_map(plan, "vteps6").elements) == {IPv6Address("fd00::12").packed}


def test_host_sends_chosen_addresses_to_the_number_inside_longest_prefix_first() -> None:
    prefixes = ("198.51.100.11/32", "203.0.113.0/24", "fd00::/64")
    chosen = tuple(ipaddress.ip_network(text) for text in prefixes)
    items = [
        msgspec.structs.replace(publish(8090, 5), addresses=chosen),
        msgspec.structs.replace(publish(8090, 6), door=61000),
        msgspec.structs.replace(publish(8091, 6), addresses=()),
    ]
    plan = plan_host(FACTS, items, (), (), 4789)
    inside = bytes([172, 18, 0, 2]) + word(8090) + bytes(2)
    port = protocol_port("tcp", 8090)
    assert the_map(plan, "chosen4_32").elements == {IPv4Address("198.51.100.11").packed + port: inside}
    assert the_map(plan, "chosen4_24").elements == {IPv4Address("203.0.113.0").packed + port: inside}
    assert set(the_map(plan, "chosen6_64").elements) == {IPv6Address("fd00::").packed + port}
    assert the_map(plan, "host_ports4").elements == {port: bytes([172, 18, 0, 2]) + word(61000) + bytes(2)}
    assert not the_map(plan, "published").elements
    names = [m.name for m in plan.tables[0].maps]
    assert names.index("chosen4_32") < names.index("chosen4_24")


def test_host_settings_follow_the_facts() -> None:
    assert host().sysctls["net/bridge/bridge-nf-call-iptables"] == "0"
    kept = host(replace(FACTS, keep_bridge_filter=True, ra_interfaces=("eth0",))).sysctls
    assert "net/bridge/bridge-nf-call-iptables" not in kept
    assert kept["net/ipv6/conf/eth0/accept_ra"] == "2"


def test_node_without_an_address_of_a_family_shows_its_gateway() -> None:
    with_six, without = host(), host(replace(FACTS, node_v6=None))
    gateway = immediate(IPv6Address("fd77::1").packed)
    for plan, expected in ((with_six, immediate(IPv6Address("fd00::11").packed)), (without, gateway)):
        chain = plan.tables[0].chain("as_node")
        assert chain is not None
        assert [rule.exprs[-2] for rule in chain.rules[2:]] == [expected, expected]


# --- the ingress sandbox ---------------------------------------------------------------------------------------------


def test_ingress_sandbox_waits_for_the_nodes_own_address() -> None:
    with pytest.raises(Unavailable, match="no address for this node"):
        plan_ingress(network(INGRESS), FACTS, ())
    plan = plan_ingress(network(INGRESS, own=2), FACTS, ())
    assert {str(a.address) for a in plan.addresses} == {
        "10.0.0.2/24",
        "fd10::2/64",
        "172.18.0.2/16",
        "fd77::2/64",
    }
    far = [link.outer for link in plan.links if isinstance(link, Veth)]
    assert [(end.namespace, end.name, end.isolated) for end in far] == [
        ("1-ingress000", "vethown02xxx", False),
        (HOST, "hm-ve-ingress", True),
    ]
    assert Neighbor(link="eth1", address=FACTS.gateway6.ip, mac=MAC("02:42:ac:12:00:01")) in plan.neighbors


def mesh(*publishes: PublishItem) -> Table:
    (table,) = mesh_part(publishes, "nftables", outside="eth1", overlay="eth0").tables
    return table


def test_port_without_backends_is_in_no_map() -> None:
    table = mesh(publish(8090, 5, 6), publish(8091))
    assert the_map(table, "ports").elements == {protocol_port("tcp", 8090): Goto("tcp-8090")}
    assert table.chain("tcp-8091") is None


def test_backends_of_one_family_only_are_not_offered_to_the_other() -> None:
    table = mesh(publish(8090, 5, 6, six=False))
    chain = table.chain("tcp-8090")
    assert chain is not None
    assert len(chain.rules) == 1
    assert the_map(table, "backends6").elements == {}


def test_growing_service_keeps_its_slots() -> None:
    before, after = publish(8090, 5, 6, 7), publish(8090, 5, 6, 7, 8)
    for version in (4, 6):
        assert slots_of(published(after), version)[:3] == slots_of(published(before), version)


@given(st.lists(st.integers(2, 250), unique=True, max_size=8), st.integers())
def test_plan_does_not_depend_on_the_order_of_the_view(lasts: list[int], seed: int) -> None:
    shuffled = list(lasts)
    random.Random(seed).shuffle(shuffled)
    item = network(INGRESS, own=2)
    one = plan_ingress(item, FACTS, [publish(8090, *lasts), publish(8091, *lasts, protocol="udp")])
    other = plan_ingress(item, FACTS, [publish(8091, *shuffled, protocol="udp"), publish(8090, *shuffled)])
    assert one == other
    peers = [peer(last, "198.51.100.12") for last in lasts]
    swapped = [peer(last, "198.51.100.12") for last in shuffled]
    assert plan_overlay(network(USER), FACTS, peers) == plan_overlay(network(USER), FACTS, swapped)
