"""rtnetlink: the dozen messages we need, packed from the values of `kernel/api.py`'s kinds, and dumps parsed back.

Numbers are from linux/rtnetlink.h, if_link.h, neighbour.h, fib_rules.h and if_addr.h. Links appear here by their index;
names are resolved by whoever holds the socket.
"""

import ipaddress
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from socket import AF_INET, AF_INET6

from hivemesh.model.addr import MAC, Address, Interface, Prefix
from hivemesh.wire.netlink import (
    ACK,
    APPEND,
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    Message,
    attribute,
    attributes,
    nested,
    number,
    pack,
    string,
    text,
    u8,
    u32,
)

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWSTATS, GETSTATS = 92, 94

ROUTE_PROTOCOL = 117
"""On every route and rule we add (RTPROT_*): no well-known routing daemon has it."""

AF_UNSPEC, AF_BRIDGE = 0, 7
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
NTF_MASTER = 0x04
IFF_UP = 0x1
_IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
_SCOPE_LINK, _SCOPE_HOST, _SCOPE_NOWHERE = 253, 254, 255
RTN_UNICAST, RTN_LOCAL = 1, 2
_ONLINK = 4
_TO_TABLE = 1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: they are most of a link's bytes

_STATS_LINK_64 = 1  # IFLA_STATS_FILTER_BIT(IFLA_STATS_LINK_64)
_IFSTATS = struct.Struct("=BxxxII")  # family, index, filter mask
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags

# --- links -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanSeen:
    """What makes a VXLAN device what it is."""

    vni: int
    port: int
    local: Address | None
    learning: bool
    proxy: bool
    flooding: bool  # has a default destination


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeen:
    """A link as the kernel shows it."""

    index: int
    name: str
    kind: str
    mac: MAC
    mtu: int
    up: bool
    alias: str
    master: int  # index, 0: none
    peer: int  # index of a veth's other end, or of a macvlan's parent, in the namespace it lives in
    elsewhere: bool  # that one, or the socket of a VXLAN device, is in another namespace
    isolated: bool = False
    snooping: bool = False  # a bridge that filters multicast by IGMP
    stp: bool = False
    vxlan: VxlanSeen | None = None
    macvlan_mode: int = 0


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def parse_link(body: bytes) -> LinkSeen:
    """The body of a NEWLINK or DELLINK."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    attrs = attributes(body, 16)
    info = attributes(attrs.get(18, b""))
    kind, data = string(info.get(1, b"")), attributes(info.get(2, b""))
    port = attributes(info.get(5, b"")) if string(info.get(4, b"")) == "bridge" else {}
    vxlan = None
    if kind == "vxlan":
        local: Address | None = None
        if 4 in data:
            local = IPv4Address(data[4])
        elif 17 in data:
            local = IPv6Address(data[17])
        vxlan = VxlanSeen(
            vni=number(data.get(1, b"")),
            port=int.from_bytes(data.get(15, b""), "big"),
            local=None if local is None or local.is_unspecified else local,
            learning=any(data.get(7, b"")),
            proxy=any(data.get(11, b"")),
            flooding=any(data.get(2, b"")) or any(data.get(16, b"")),
        )
    return LinkSeen(
        index=index,
        name=string(attrs.get(3, b"")),
        kind=kind,
        mac=MAC(attrs.get(1, b"").hex(":")),
        mtu=number(attrs.get(4, b"")),
        up=bool(flags & IFF_UP),
        alias=string(attrs.get(20, b"")),
        master=number(attrs.get(10, b"")),
        peer=number(attrs.get(5, b"")) if kind in ("veth", "macvlan") else 0,
        elsewhere=37 in attrs,
        isolated=any(port.get(33, b"")),
        snooping=kind == "bridge" and any(data.get(23, b"")),
        stp=kind == "bridge" and any(data.get(5, b"")),
        vxlan=vxlan,
        macvlan_mode=number(data.get(1, b"")) if kind == "macvlan" else 0,
    )


def links_question() -> bytes:
    return pack(GETLINK, DUMP, 1, _IFINFO.pack(0, 0, 0, 0, 0) + u32(29, _SKIP_STATISTICS))


@dataclass(frozen=True, slots=True)
class TrafficSeen:
    """What a link has carried since it was made: bytes, and packets dropped in either direction."""

    received: int
    sent: int
    dropped: int


def traffic_question() -> bytes:
    return pack(GETLINK, DUMP, 1, _IFINFO.pack(0, 0, 0, 0, 0))


def parse_traffic(body: bytes) -> tuple[str, TrafficSeen]:
    """Name, and the 64-bit statistics (struct rtnl_link_stats64)."""
    attrs = attributes(body, 16)
    if 23 not in attrs:
        return string(attrs.get(3, b"")), TrafficSeen(0, 0, 0)
    _, _, received, sent, _, _, dropped_in, dropped_out = struct.unpack_from("=8Q", attrs[23])
    return string(attrs.get(3, b"")), TrafficSeen(received, sent, dropped_in + dropped_out)


def counters_question() -> bytes:
    """What links have carried and nothing else: a tenth of the bytes of a dump of links (RTM_GETSTATS, kernel 4.7)."""
    return pack(GETSTATS, DUMP, 1, _IFSTATS.pack(0, 0, _STATS_LINK_64))


def parse_counters(body: bytes) -> tuple[int, int, int]:
    """Index, bytes received and sent (struct rtnl_link_stats64)."""
    _, index, _ = _IFSTATS.unpack_from(body)
    found = attributes(body, _IFSTATS.size).get(1)
    if found is None:
        return index, 0, 0
    _, _, received, sent = struct.unpack_from("=4Q", found)
    return index, received, sent


def link_question(name: str) -> bytes:
    return pack(GETLINK, ACK, 1, _IFINFO.pack(0, 0, 0, 0, 0) + text(3, name) + u32(29, _SKIP_STATISTICS))


def add_bridge(name: str, mac: MAC | None) -> Message:
    """Up, no spanning tree, no multicast filtering: neighbour discovery must pass without a querier.

    Its MTU is to be set afterwards: a bridge follows the MTUs of its ports unless somebody has changed its own.
    """
    own = attribute(1, mac_bytes(mac)) if mac else b""
    info = nested(18, text(1, "bridge"), nested(2, u32(5, 0), u8(23, 0)))
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(3, name) + own + info
    return Message("add_link", name, NEWLINK, CREATE | EXCLUSIVE, body)


def add_vxlan(
    name: str, *, vni: int, port: int, local: Address, mtu: int, master: int, namespace: int | None
) -> Message:
    """Sent in the namespace whose routes carry the packets; the device appears in the one of the handle `namespace`.

    `master` is an index there.
    """
    data = (
        u32(1, vni),
        attribute(4 if local.version == 4 else 17, local.packed),
        u8(7, 0),
        u8(11, 1),
        attribute(15, port.to_bytes(2, "big")),
    )
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(3, name) + u32(4, mtu)
    if master:
        body += u32(10, master)
    if namespace is not None:
        body += u32(28, namespace)
    return Message("add_link", name, NEWLINK, CREATE | EXCLUSIVE, body + nested(18, text(1, "vxlan"), nested(2, *data)))


def add_veth(outer: str, inner: str, *, mtu: int, mac: MAC, master: int, namespace: int | None) -> Message:
    """Sent where the outer end lives, which comes up at once as a port of `master`; the inner end appears behind the
    handle `namespace`. It cannot come up in the same message (ENOTCONN: it has no peer yet)."""
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + text(3, inner) + u32(4, mtu) + attribute(1, mac_bytes(mac))
    if namespace is not None:
        peer += u32(28, namespace)
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(3, outer) + u32(4, mtu)
    if master:
        body += u32(10, master)
    info = nested(18, text(1, "veth"), nested(2, nested(1, peer)))
    return Message("add_link", inner, NEWLINK, CREATE | EXCLUSIVE, body + info)


def add_macvlan(name: str, *, parent: int, mode: str, mtu: int, mac: MAC, namespace: int) -> Message:
    """Sent where the parent lives, whose MTU it gets with `mtu` 0; it appears behind the handle `namespace`, down."""
    own = u32(4, mtu) if mtu else b""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(3, name) + own + attribute(1, mac_bytes(mac)) + u32(5, parent)
    info = nested(18, text(1, "macvlan"), nested(2, u32(1, MACVLAN_MODES[mode])))
    return Message("add_link", name, NEWLINK, CREATE | EXCLUSIVE, body + u32(28, namespace) + info)


def add_link(name: str, kind: str, mtu: int = 0) -> Message:
    """Of a kind that needs no more than a name; up."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + text(3, name) + (u32(4, mtu) if mtu else b"")
    body += nested(18, text(1, kind))
    return Message("add_link", name, NEWLINK, CREATE | EXCLUSIVE, body)


def set_link(
    index: int,
    name: str,
    *,
    up: bool = False,
    mtu: int | None = None,
    mac: MAC | None = None,
    master: int | None = None,
    alias: str | None = None,
) -> Message:
    """Change what is given; `up` False leaves the state."""
    body = _IFINFO.pack(0, 0, index, IFF_UP if up else 0, IFF_UP if up else 0)
    if mtu is not None:
        body += u32(4, mtu)
    if mac is not None:
        body += attribute(1, mac_bytes(mac))
    if master is not None:
        body += u32(10, master)
    if alias is not None:
        body += text(20, alias)
    return Message("set_link", name, SETLINK, 0, body)


def set_bridge(index: int, name: str) -> Message:
    """No spanning tree, no multicast filtering."""
    info = nested(18, text(1, "bridge"), nested(2, u32(5, 0), u8(23, 0)))
    return Message("set_link", name, NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + info)


def set_isolated(index: int, name: str, isolated: bool) -> Message:
    """Bridge port isolation, of a link that is a port already."""
    body = _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + nested(12, u8(33, isolated))
    return Message("set_link", name, SETLINK, 0, body)


def delete_link(index: int, name: str) -> Message:
    return Message("delete_link", name, DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


# --- addresses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddressSeen:
    index: int
    address: IPv4Interface | IPv6Interface
    permanent: bool  # not learnt from a router
    link_local: bool  # the kernel's own fe80::


def family_of(value: Address | Interface | Prefix) -> int:
    return AF_INET if value.version == 4 else AF_INET6


def addresses_question() -> bytes:
    return pack(GETADDR, DUMP, 1, _IFADDR.pack(0, 0, 0, 0, 0))


def parse_address(body: bytes) -> AddressSeen:
    """The body of a NEWADDR or DELADDR."""
    family, length, flags, _, index = _IFADDR.unpack_from(body)
    attrs = attributes(body, 8)
    packed = attrs.get(2, attrs.get(1, b""))
    flags = number(attrs[8]) if 8 in attrs else flags
    if family == AF_INET:
        four = IPv4Interface((packed, length))
        return AddressSeen(index, four, bool(flags & IFA_F_PERMANENT), False)
    six = IPv6Interface((packed, length))
    return AddressSeen(index, six, bool(flags & IFA_F_PERMANENT), six.is_link_local)


def set_address(index: int, address: IPv4Interface | IPv6Interface, name: str) -> Message:
    """IPv6 without duplicate address detection: it would hold the address back for a second."""
    packed = address.ip.packed
    flags = _IFA_F_NODAD if address.version == 6 else 0
    body = _IFADDR.pack(family_of(address), address.network.prefixlen, flags, 0, index)
    body += attribute(2, packed) + attribute(1, packed)
    return Message("set_address", f"{address} on {name}", NEWADDR, CREATE | REPLACE, body)


def delete_address(index: int, address: IPv4Interface | IPv6Interface, name: str) -> Message:
    body = _IFADDR.pack(family_of(address), address.network.prefixlen, 0, 0, index)
    body += attribute(2, address.ip.packed)
    return Message("delete_address", f"{address} on {name}", DELADDR, 0, body)


# --- routes and rules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteSeen:
    destination: Prefix
    index: int  # 0: several next hops
    gateway: Address | None
    table: int
    onlink: bool
    protocol: int
    kind: int


@dataclass(frozen=True, slots=True)
class RuleSeen:
    family: int
    priority: int
    table: int
    source: Prefix | None
    mark: int
    mask: int
    protocol: int
    plain: bool  # nothing but what is named here
    body: bytes  # as dumped: the kernel takes it back to delete the rule


def _prefix(family: int, packed: bytes, length: int) -> Prefix:
    return (
        IPv4Network((packed or bytes(4), length)) if family == AF_INET else IPv6Network((packed or bytes(16), length))
    )


def routes_question(family: int) -> bytes:
    """Only ours: the kernel filters by protocol when NETLINK_GET_STRICT_CHK is on."""
    return pack(GETROUTE, DUMP, 1, _RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0))


def route_question(destination: Address) -> bytes:
    """Which way the kernel itself would take to one address (`ip route get`)."""
    bits = destination.max_prefixlen
    body = _RTMSG.pack(family_of(destination), bits, 0, 0, 0, 0, 0, 0, 0) + attribute(1, destination.packed)
    return pack(GETROUTE, ACK, 1, body)


def parse_route(body: bytes) -> RouteSeen:
    """The body of a NEWROUTE or DELROUTE."""
    family, length, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(body)
    attrs = attributes(body, 12)
    return RouteSeen(
        destination=_prefix(family, attrs.get(1, b""), length),
        index=number(attrs.get(4, b"")),
        gateway=ipaddress.ip_address(attrs[5]) if 5 in attrs else None,
        table=number(attrs[15]) if 15 in attrs else table,
        onlink=bool(flags & _ONLINK),
        protocol=protocol,
        kind=kind,
    )


def _route_body(
    destination: Prefix, index: int, gateway: Address | None, table: int, flags: int, scope: int, kind: int
) -> bytes:
    body = _RTMSG.pack(
        family_of(destination), destination.prefixlen, 0, 0, table if table < 256 else 0, ROUTE_PROTOCOL, scope,
        kind, flags,
    )  # fmt: skip
    if destination.prefixlen:
        body += attribute(1, destination.network_address.packed)
    if gateway is not None:
        body += attribute(5, gateway.packed)
    if index:
        body += u32(4, index)
    return body + u32(15, table)


def set_route(
    destination: Prefix,
    index: int,
    gateway: Address | None,
    table: int,
    *,
    onlink: bool = False,
    local: bool = False,
    replace: bool = False,
) -> Message:
    """`local` delivers here (RTN_LOCAL), beside routes to the same destination through other links.

    `replace` takes the place of whoever's route to the same destination; else that is an error (EEXIST)."""
    scope = 0
    if destination.version == 4 and (local or gateway is None):
        scope = _SCOPE_HOST if local else _SCOPE_LINK
    kind = RTN_LOCAL if local else RTN_UNICAST
    body = _route_body(destination, index, gateway, table, _ONLINK if onlink else 0, scope, kind)
    subject = f"{destination} in table {table}"
    beside = APPEND if local else EXCLUSIVE
    return Message("set_route", subject, NEWROUTE, CREATE | (REPLACE if replace else beside), body)


def delete_route(
    destination: Prefix, index: int, gateway: Address | None, table: int, kind: int = RTN_UNICAST
) -> Message:
    """Of our protocol, whatever its metric."""
    scope = _SCOPE_NOWHERE if destination.version == 4 else 0  # any
    body = _route_body(destination, index, gateway, table, 0, scope, kind)
    return Message("delete_route", f"{destination} in table {table}", DELROUTE, 0, body)


def rules_question() -> bytes:
    return pack(GETRULE, DUMP, 1, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))


_RULE_KNOWN = {1, 2, 6, 10, 14, 15, 16, 21}  # addresses, priority, mark, suppressors at rest, table, mask, protocol


def parse_rule(body: bytes) -> RuleSeen:
    """The body of a NEWRULE or DELRULE (struct fib_rule_hdr has the shape of an rtmsg)."""
    family, to_length, from_length, tos, table, _, _, action, flags = _RTMSG.unpack_from(body)
    attrs = attributes(body, 12)
    mark = number(attrs.get(10, b""))
    nothing_else = not (set(attrs) - _RULE_KNOWN) and number(attrs.get(14, b"\xff" * 4)) == 0xFFFFFFFF
    return RuleSeen(
        family=family,
        priority=number(attrs.get(6, b"")),
        table=number(attrs[15]) if 15 in attrs else table,
        source=_prefix(family, attrs[2], from_length) if 2 in attrs else None,
        mark=mark,
        mask=number(attrs.get(16, b"")),
        protocol=number(attrs.get(21, b"")),
        plain=nothing_else and action == _TO_TABLE and not to_length and not tos and not flags & 2,
        body=body,
    )


def _rule_body(family: int, priority: int, table: int, source: Prefix | None, mark: int, mask: int) -> bytes:
    length = source.prefixlen if source is not None else 0
    body = _RTMSG.pack(family, 0, length, 0, table if table < 256 else 0, 0, 0, _TO_TABLE, 0)
    if source is not None:
        body += attribute(2, source.network_address.packed)
    body += u32(6, priority) + u32(15, table)
    if mark or mask:
        body += u32(10, mark) + u32(16, mask)
    return body


def set_rule(family: int, priority: int, table: int, source: Prefix | None, mark: int, mask: int) -> Message:
    body = _rule_body(family, priority, table, source, mark, mask) + u8(21, ROUTE_PROTOCOL)
    return Message("set_rule", f"{priority} to table {table}", NEWRULE, CREATE | EXCLUSIVE, body)


def delete_rule(family: int, priority: int, table: int, source: Prefix | None, mark: int, mask: int) -> Message:
    """Whoever made it."""
    body = _rule_body(family, priority, table, source, mark, mask)
    return Message("delete_rule", f"{priority} to table {table}", DELRULE, 0, body)


def delete_odd_rule(rule: RuleSeen) -> Message:
    """A rule with parts we do not know: the kernel takes back what it showed."""
    return Message("delete_rule", f"{rule.priority} to table {rule.table}", DELRULE, 0, rule.body)


# --- neighbors and forwarding entries --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NeighborSeen:
    index: int
    address: Address
    mac: MAC
    permanent: bool


@dataclass(frozen=True, slots=True)
class FdbSeen:
    index: int
    mac: MAC
    vtep: Address | None
    plain: bool  # permanent, and neither port nor VNI nor device of its own


def neighbors_question(index: int) -> bytes:
    """Of one link; the kernel filters when NETLINK_GET_STRICT_CHK is on."""
    return pack(GETNEIGH, DUMP, 1, _NDMSG.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(8, index))


def fdb_question(index: int) -> bytes:
    """Of one bridge port: the bridge's own entries for it as well as the port's."""
    return pack(GETNEIGH, DUMP, 1, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def parse_neighbor(body: bytes) -> NeighborSeen:
    """The body of a NEWNEIGH or DELNEIGH of an IP family."""
    _, index, state, _, _ = _NDMSG.unpack_from(body)
    attrs = attributes(body, 12)
    packed = attrs.get(1, b"")
    address: Address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return NeighborSeen(index, address, MAC(attrs.get(2, b"").hex(":")), state == NUD_PERMANENT)


def parse_fdb(body: bytes) -> FdbSeen | None:
    """The body of a NEWNEIGH or DELNEIGH of AF_BRIDGE; None for what the bridge, not the device itself, knows."""
    _, index, state, flags, _ = _NDMSG.unpack_from(body)
    if not flags & NTF_SELF:
        return None
    attrs = attributes(body, 12)
    packed = attrs.get(1, b"")
    vtep: Address | None = None
    if packed:
        vtep = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    plain = state == NUD_PERMANENT and not attrs.keys() & {6, 7, 8, 11}
    return FdbSeen(index, MAC(attrs.get(2, b"").hex(":")), vtep, plain)


def set_neighbor(index: int, address: Address, mac: MAC) -> Message:
    body = _NDMSG.pack(family_of(address), index, NUD_PERMANENT, 0, 0)
    body += attribute(1, address.packed) + attribute(2, mac_bytes(mac))
    return Message("set_neighbor", str(address), NEWNEIGH, CREATE | REPLACE, body)


def delete_neighbor(index: int, address: Address) -> Message:
    body = _NDMSG.pack(family_of(address), index, 0, 0, 0) + attribute(1, address.packed)
    return Message("delete_neighbor", str(address), DELNEIGH, 0, body)


def set_fdb(index: int, mac: MAC, vtep: Address) -> Message:
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    body += attribute(2, mac_bytes(mac)) + attribute(1, vtep.packed)
    return Message("set_fdb", f"{mac} at {vtep}", NEWNEIGH, CREATE | REPLACE, body)


def delete_fdb(index: int, mac: MAC, vtep: Address | None) -> Message:
    """Without `vtep` the whole entry. The entry for all others (zero MAC) has many destinations and needs it."""
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + attribute(2, mac_bytes(mac))
    if vtep is not None:
        body += attribute(1, vtep.packed)
    return Message("delete_fdb", mac, DELNEIGH, 0, body)


def delete_learned(index: int, mac: MAC) -> Message:
    """What the bridge has learnt by itself about a MAC behind its port `index`."""
    body = _NDMSG.pack(AF_BRIDGE, index, 0, NTF_MASTER, 0) + attribute(2, mac_bytes(mac))
    return Message("delete_learned", mac, DELNEIGH, 0, body)
