"""Netlink framing and the rtnetlink messages, as bytes and back."""

import errno
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.model.addr import MAC, Address
from hivemesh.wire import netlink
from hivemesh.wire import rtnetlink as wire

MACS = st.binary(min_size=6, max_size=6).map(lambda b: MAC(b.hex(":")))
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), unique_by=lambda pair: pair[0]))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert netlink.attributes(data) == dict(pairs)


@settings(max_examples=30)
@given(st.binary(max_size=60))
def test_broken_attributes_are_no_endless_loop(data: bytes) -> None:
    netlink.attributes(data)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=30), max_size=8))
def test_messages_of_one_datagram_come_back(bodies: list[bytes]) -> None:
    data = b"".join(netlink.pack(16, netlink.ACK, number, body) for number, body in enumerate(bodies))
    found = list(netlink.replies(data))
    assert [reply.body for reply in found] == bodies
    assert [reply.sequence for reply in found] == list(range(len(bodies)))
    assert all(reply.flags == netlink.ACK | netlink.REQUEST for reply in found)


def test_error_carries_its_number_and_the_kernels_words() -> None:
    header = struct.pack("=IHHII", 0, 0, 0, 0, 0)
    body = struct.pack("=i", -errno.EEXIST) + header + netlink.text(1, "there is one")
    (reply,) = netlink.replies(netlink.pack(netlink.ERROR, 0, 7, body))
    assert netlink.error_of(reply) == (errno.EEXIST, "there is one")
    (reply,) = netlink.replies(netlink.pack(netlink.ERROR, 0, 7, bytes(20)))
    assert netlink.error_of(reply) == (0, "")


@settings(max_examples=30)
@given(MACS, ADDRESSES, st.integers(1, 2**31 - 1))
def test_forwarding_entry_comes_back(mac: MAC, vtep: Address, index: int) -> None:
    message = wire.set_fdb(index, mac, vtep)
    assert wire.parse_fdb(message.body) == wire.FdbSeen(index, mac, vtep, plain=True)


@settings(max_examples=30)
@given(MACS, ADDRESSES, st.integers(1, 2**31 - 1))
def test_neighbor_comes_back(mac: MAC, address: Address, index: int) -> None:
    message = wire.set_neighbor(index, address, mac)
    assert wire.parse_neighbor(message.body) == wire.NeighborSeen(index, address, mac, permanent=True)


@pytest.mark.parametrize("text", ["10.0.0.5/24", "fd00:1::5/64", "fe80::1/64"])
def test_address_comes_back(text: str) -> None:
    address = ip_interface(text)
    seen = wire.parse_address(wire.set_address(3, address, "eth0").body)
    assert (seen.index, seen.address, seen.link_local) == (3, address, text.startswith("fe80"))


@pytest.mark.parametrize(
    ("destination", "gateway", "table", "onlink", "local"),
    [
        ("0.0.0.0/0", "10.0.0.1", 254, False, False),
        ("0.0.0.0/0", "169.254.42.1", 4900, True, False),
        ("::/0", "fe80::1", 4900, True, False),
        ("fd00:2::/64", None, 254, False, False),
        ("198.18.0.1/32", None, 255, False, True),
    ],
)
def test_route_comes_back(destination: str, gateway: str | None, table: int, onlink: bool, local: bool) -> None:
    via = ip_address(gateway) if gateway else None
    message = wire.set_route(ip_network(destination), 5, via, table, onlink=onlink, local=local)
    assert wire.parse_route(message.body) == wire.RouteSeen(
        destination=ip_network(destination),
        index=5,
        gateway=via,
        table=table,
        onlink=onlink,
        protocol=117,
        kind=wire.RTN_LOCAL if local else wire.RTN_UNICAST,
    )


@pytest.mark.parametrize(
    ("family", "source", "mark", "mask"), [(2, "10.0.0.0/24", 0, 0), (10, "fd00::/64", 0, 0), (10, None, 0x100, 0xFF00)]
)
def test_rule_comes_back(family: int, source: str | None, mark: int, mask: int) -> None:
    prefix = ip_network(source) if source else None
    seen = wire.parse_rule(wire.set_rule(family, 100, 4900, prefix, mark, mask).body)
    assert (seen.family, seen.priority, seen.table, seen.source) == (family, 100, 4900, prefix)
    assert (seen.mark, seen.mask, seen.protocol, seen.plain) == (mark, mask, 117, True)


def test_rule_with_more_than_we_know_is_not_plain() -> None:
    message = wire.set_rule(2, 100, 4900, None, 0, 0)
    assert not wire.parse_rule(message.body + netlink.text(3, "eth0")).plain


@pytest.mark.parametrize("local", [IPv4Address("198.51.100.11"), IPv6Address("fd00:99::11")])
def test_vxlan_message_says_what_the_device_is(local: Address) -> None:
    message = wire.add_vxlan("vxlan0", vni=4096, port=4789, local=local, mtu=1450, master=7, namespace=None)
    seen = wire.parse_link(message.body)
    assert (seen.name, seen.kind, seen.mtu, seen.master, seen.up) == ("vxlan0", "vxlan", 1450, 7, True)
    assert seen.vxlan == wire.VxlanSeen(vni=4096, port=4789, local=local, learning=False, proxy=True, flooding=False)
