"""nftables as values: tables, chains, rules and maps, their netlink form, and what a listing says of them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from hivemesh.model.addr import Prefix


@dataclass(frozen=True, slots=True)
class Expr:
    """One expression of a rule: its kernel name and its attributes (type, bytes or nested attributes)."""

    name: str
    attrs: tuple["Attr", ...]


Attr = tuple[int, "bytes | tuple[Attr, ...]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Expressions run in order; the comment is shown by `nft list`."""

    exprs: tuple[Expr, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a base chain is called from: type (filter, nat, route), hook name, priority, and device in netdev."""

    type: str
    hook: str
    priority: int
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; without a hook it is reached by jump or goto."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Goto:
    """A verdict map's value: continue in that chain and do not come back."""

    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A set (no value type) or map; `key` and `value` name nft data types, several key parts are concatenated.

    Elements are in kernel form: each key part padded to 4 bytes, values as bytes or `Goto` for value `verdict`.
    With `counts` each element counts the packets that find it, and their bytes.
    """

    name: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    elements: Mapping[bytes, "bytes | Goto | None"] = field(default_factory=dict)
    counts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of ours: whatever is inside is ours. Family is inet, ip, ip6 or netdev."""

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    maps: tuple[Map, ...] = ()

    def chain(self, name: str) -> Chain | None:
        """The chain of that name."""
        return next((chain for chain in self.chains if chain.name == name), None)


# --- expressions -------------------------------------------------------------------------------------------------
#
# Numbers are from linux/netfilter/nf_tables.h. Values live in registers of 32 bits, counted here from 0; a longer value
# takes several in a row, and parts of a concatenated key lie in successive registers.

IPV4, IPV6, INET = 2, 10, 1  # as `meta nfproto` shows them; INET where the family does not matter
TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
PROTOCOL_NUMBERS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
DROP, ACCEPT, RETURN, GOTO, JUMP = 0, 1, -5, -4, -3
LINK_LAYER, NETWORK_LAYER, TRANSPORT_LAYER = 0, 1, 2

_META = {"protocol": 1, "mark": 3, "iif": 4, "oif": 5, "iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
_CT = {"state": 0, "direction": 1, "status": 2, "mark": 3, "zone": 17}
CT_STATE_ESTABLISHED, CT_STATE_RELATED, CT_STATE_NEW, CT_STATE_UNTRACKED = 2, 4, 8, 64
CT_STATUS_DNAT = 0x20
CT_ORIGINAL, CT_REPLY = 0, 1
RTN_UNICAST, RTN_LOCAL = 1, 2
_EQ, _NEQ = 0, 1
_SNAT, _DNAT = 0, 1
_MAP_IPS, _PROTO_SPECIFIED = 1, 2
_CHECKSUM_INET = 1
_REJECT_TCP_RESET, _REJECT_ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1


def _u32(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "big")


def _reg(index: int) -> bytes:
    """The kernel names a register that starts a 128-bit one by that (1-4), others by their own number (8-23): what we
    send must look as what is dumped."""
    return _u32(1 + index // 4 if index % 4 == 0 else 8 + index)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _value(data: bytes) -> tuple[Attr, ...]:
    return ((1, data),)


def ifname(name: str) -> bytes:
    """An interface name as `meta iifname` compares it: 16 bytes."""
    return name.encode().ljust(16, b"\0")


def host_u32(number: int) -> bytes:
    """A mark: 32 bits in the machine's byte order."""
    return number.to_bytes(4, sys.byteorder)


def meta(key: str, reg: int = 0) -> Expr:
    return Expr("meta", ((2, _u32(_META[key])), (1, _reg(reg))))


def meta_set(key: str, reg: int = 0) -> Expr:
    return Expr("meta", ((2, _u32(_META[key])), (3, _reg(reg))))


def ct(key: str, reg: int = 0) -> Expr:
    return Expr("ct", ((2, _u32(_CT[key])), (1, _reg(reg))))


def ct_set(key: str, reg: int = 0, direction: int | None = None) -> Expr:
    where: tuple[Attr, ...] = () if direction is None else ((3, bytes([direction])),)
    return Expr("ct", ((2, _u32(_CT[key])), *where, (4, _reg(reg))))


def payload(base: int, offset: int, length: int, reg: int = 0) -> Expr:
    return Expr("payload", ((1, _reg(reg)), (2, _u32(base)), (3, _u32(offset)), (4, _u32(length))))


def payload_set(base: int, offset: int, length: int, reg: int = 0, checksum: int | None = None) -> Expr:
    """Write packet bytes. `checksum` is the offset of the layer's checksum that covers them (TCP: 16, UDP: 6); None
    leaves all checksums alone, which is right for the link layer."""
    kind, where = (0, 0) if checksum is None else (_CHECKSUM_INET, checksum)
    return Expr(
        "payload",
        ((5, _reg(reg)), (2, _u32(base)), (3, _u32(offset)), (4, _u32(length)), (6, _u32(kind)), (7, _u32(where))),
    )


def cmp(data: bytes, reg: int = 0, *, equal: bool = True) -> Expr:
    return Expr("cmp", ((1, _reg(reg)), (2, _u32(_EQ if equal else _NEQ)), (3, _value(data))))


def bits(mask: bytes, reg: int = 0) -> Expr:
    """reg &= mask."""
    length = len(mask)
    return Expr(
        "bitwise",
        ((1, _reg(reg)), (2, _reg(reg)), (3, _u32(length)), (4, _value(mask)), (5, _value(bytes(length)))),
    )


def lookup(name: str, reg: int = 0, to: int | None = None, *, missing: bool = False) -> Expr:
    """Go on if the key in `reg` is in the set (`missing`: is not); of a map, put its value into register `to`."""
    result: tuple[Attr, ...] = () if to is None else ((3, _reg(to)),)
    flags: tuple[Attr, ...] = ((5, _u32(1)),) if missing else ()
    return Expr("lookup", ((1, _text(name)), (2, _reg(reg)), *result, *flags))


def vmap(name: str, reg: int = 0) -> Expr:
    """Do as the verdict map says for the key in `reg`; go on if it says nothing."""
    return Expr("lookup", ((1, _text(name)), (2, _reg(reg)), (3, _u32(0))))


def numgen(modulus: int, reg: int = 0) -> Expr:
    """0, 1, ... modulus - 1, again and again: one counter per rule, shared by all processors."""
    return Expr("numgen", ((1, _reg(reg)), (2, _u32(modulus)), (3, _u32(0)), (4, _u32(0))))


def jhash(length: int, modulus: int, seed: int, reg: int = 0, to: int = 0) -> Expr:
    """A number below `modulus` that depends on the `length` bytes from `reg` on and on `seed` alone (Jenkins' hash)."""
    return Expr(
        "hash",
        (
            (1, _reg(reg)),
            (2, _reg(to)),
            (3, _u32(length)),
            (4, _u32(modulus)),
            (5, _u32(seed)),
            (7, _u32(0)),
        ),
    )


def reset() -> Expr:
    """Refuse a TCP packet as a closed port does."""
    return Expr("reject", ((1, _u32(_REJECT_TCP_RESET)),))


def unreachable() -> Expr:
    """Refuse a packet of any other protocol, of either family, as a closed port does."""
    return Expr("reject", ((1, _u32(_REJECT_ICMPX)), (2, bytes([_ICMPX_PORT_UNREACHABLE]))))


def immediate(data: bytes, reg: int = 0) -> Expr:
    return Expr("immediate", ((1, _reg(reg)), (2, _value(data))))


def verdict(code: int, chain: str = "") -> Expr:
    target: tuple[Attr, ...] = ((2, _text(chain)),) if chain else ()
    return Expr("immediate", ((1, _u32(0)), (2, ((2, ((1, _u32(code)), *target)),))))


def fib_type(of: str, reg: int = 0) -> Expr:
    """The route type of an address (`of`: saddr or daddr), as a u32 in the machine's order (2: local)."""
    return Expr("fib", ((1, _reg(reg)), (2, _u32(3)), (3, _u32({"saddr": 1, "daddr": 2}[of]))))


def _nat(kind: int, family: int, address: int | None, port: int | None) -> Expr:
    attrs: list[Attr] = [(1, _u32(kind)), (2, _u32(family))]
    if address is not None:
        attrs.append((3, _reg(address)))
    if port is not None:
        flags = _PROTO_SPECIFIED | (_MAP_IPS if address is not None else 0)  # as the kernel completes and dumps them
        attrs += [(5, _reg(port)), (7, _u32(flags))]
    return Expr("nat", tuple(attrs))


def dnat(family: int, address: int | None, port: int | None = None) -> Expr:
    """Rewrite the destination with the registers' address and port; without an address only the port changes."""
    return _nat(_DNAT, family, address, port)


def snat(family: int, address: int) -> Expr:
    return _nat(_SNAT, family, address, None)


def masquerade() -> Expr:
    return Expr("masq", ())


def counter() -> Expr:
    """Count the packets that come as far as this, and their bytes."""
    return Expr("counter", ())


def notrack() -> Expr:
    """Conntrack leaves the packet alone; only before it has seen it, at priority raw."""
    return Expr("notrack", ())


# --- matches people would write ----------------------------------------------------------------------------------


def match_nfproto(family: int) -> tuple[Expr, ...]:
    return meta("nfproto"), cmp(bytes([family]))


def match_l4proto(protocol: int, *, equal: bool = True) -> tuple[Expr, ...]:
    return meta("l4proto"), cmp(bytes([protocol]), equal=equal)


def match_iifname(name: str, *, equal: bool = True) -> tuple[Expr, ...]:
    return meta("iifname"), cmp(ifname(name), equal=equal)


def match_oifname(name: str, *, equal: bool = True) -> tuple[Expr, ...]:
    return meta("oifname"), cmp(ifname(name), equal=equal)


def match_ct_state(mask: int) -> tuple[Expr, ...]:
    return ct("state"), bits(host_u32(mask)), cmp(host_u32(0), equal=False)


def match_ct_status(mask: int) -> tuple[Expr, ...]:
    return ct("status"), bits(host_u32(mask)), cmp(host_u32(0), equal=False)


def match_local_destination() -> tuple[Expr, ...]:
    return fib_type("daddr"), cmp(host_u32(RTN_LOCAL))


def match_local_source() -> tuple[Expr, ...]:
    return fib_type("saddr"), cmp(host_u32(RTN_LOCAL))


def match_not_forwarded() -> tuple[Expr, ...]:
    """The destination is anything but a way to another machine: an address of this one, a broadcast, a multicast."""
    return fib_type("daddr"), cmp(host_u32(RTN_UNICAST), equal=False)


def load_source(version: int, reg: int = 0) -> Expr:
    """The source address of an IPv4 or IPv6 packet."""
    return payload(NETWORK_LAYER, 12, 4, reg) if version == 4 else payload(NETWORK_LAYER, 8, 16, reg)


def match_source(prefix: Prefix) -> tuple[Expr, ...]:
    """`ip saddr` or `ip6 saddr`, with the family check an inet table needs first."""
    family = match_nfproto(IPV4 if prefix.version == 4 else IPV6)
    length, mask = prefix.prefixlen, prefix.netmask.packed
    narrow = () if length == prefix.max_prefixlen else (bits(mask),)
    return *family, load_source(prefix.version), *narrow, cmp(prefix.network_address.packed)


def load_destination(version: int, reg: int = 0) -> Expr:
    """The destination address of an IPv4 or IPv6 packet."""
    return payload(NETWORK_LAYER, 16, 4, reg) if version == 4 else payload(NETWORK_LAYER, 24, 16, reg)


def match_destination(version: int, address: bytes) -> tuple[Expr, ...]:
    """`ip daddr` or `ip6 daddr`, with the family check an inet table needs first."""
    return *match_nfproto(IPV4 if version == 4 else IPV6), load_destination(version), cmp(address)


def load_destination_port(reg: int = 0) -> Expr:
    """Of TCP, UDP and SCTP alike."""
    return payload(TRANSPORT_LAYER, 2, 2, reg)


def load_source_port(reg: int = 0) -> Expr:
    """Likewise."""
    return payload(TRANSPORT_LAYER, 0, 2, reg)


def load_protocol_port(reg: int = 0) -> tuple[Expr, ...]:
    """`meta l4proto . th dport`: two registers."""
    return meta("l4proto", reg), load_destination_port(reg + 1)


def protocol_port(protocol: str, port: int) -> bytes:
    """The key that `load_protocol_port` makes, each part padded to 4 bytes."""
    return bytes([PROTOCOL_NUMBERS[protocol], 0, 0, 0]) + port.to_bytes(2, "big") + b"\0\0"


def protocol_port_of(key: bytes) -> tuple[str, int]:
    """What `protocol_port` made the key of."""
    return _PROTOCOL_NAMES[key[0]], int.from_bytes(key[4:6], "big")
