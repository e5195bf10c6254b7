"""The balancer that Swarm uses: IPVS, behind the same Protocol, with marks set by nftables.

    mesh   packet in from eth1 -> ports: protocol . port -> mark ──┐  untracked
    VIPs   packet of our own   -> vips4, vips6: address  -> mark ──┴─▶ IPVS service of that mark ─▶ backend (NAT)

Nothing is masqueraded, so that the backend sees the client's own address. IPVS keeps its own connections, conntrack
would keep them once more: what goes to IPVS passes conntrack by, in both directions. That also makes it refuse at once
what leads to a backend that is gone, and schedule anew a port that a client uses again.

IPVS knows TCP, UDP and SCTP. All else sent to a virtual address (ping above all) is led to its first backend by
nftables. What no one has translated is refused behind IPVS.

Its connections end with their destination, so UDP, which knows no end, has services of its own: their destinations go
at once, and a client that keeps sending moves on; those of TCP and SCTP stay until their connections have ended.
"""

import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from hivemesh.dataplane.balancer.api import Balanced, Part, Published, Target, Virtual
from hivemesh.kernel.api import Destination, VirtualService
from hivemesh.model.addr import Address
from hivemesh.model.service import Scheduler
from hivemesh.wire.nft import (
    DROP,
    IPV4,
    IPV6,
    PROTOCOL_NUMBERS,
    RTN_LOCAL,
    TCP,
    TRANSPORT_LAYER,
    UDP,
    Chain,
    Expr,
    Goto,
    Hook,
    Map,
    Rule,
    Table,
    cmp,
    counter,
    dnat,
    fib_type,
    host_u32,
    immediate,
    load_destination,
    load_protocol_port,
    load_source,
    lookup,
    match_iifname,
    match_l4proto,
    match_local_destination,
    match_nfproto,
    meta,
    meta_set,
    notrack,
    payload,
    protocol_port,
    reset,
    unreachable,
    verdict,
)

TABLE = "hivemesh-ipvs"
REFUSED = "refused"
"""The sets of all virtual addresses, by version, that count what IPVS had no backend for."""
SYSCTLS: Mapping[str, str] = {
    "net/ipv4/vs/conntrack": "0",
    # a client's port that is used again is a new connection, not one with whoever had it before
    "net/ipv4/vs/conn_reuse_mode": "1",
    # connections to a destination that is gone are refused, not lost
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
}
_FALLBACK = 0x8  # IP_VS_SVC_F_SCHED1: sh and mh go on to the next when the one they hash to has weight 0
_SCHEDULERS: Mapping[Scheduler, tuple[str, int]] = {
    # with equal weights the weighted ones are exactly the plain ones
    "rr": ("wrr", 0),
    "lc": ("wlc", 0),
    "source": ("sh", _FALLBACK),
    "maglev": ("mh", _FALLBACK),
}
_FAMILIES = ((4, IPV4, AF_INET, "ipv4_addr"), (6, IPV6, AF_INET6, "ipv6_addr"))
_RAW, _BEHIND_IPVS_FORWARD, _BEHIND_IPVS_OUTPUT = -300, 200, -50  # IPVS: 99 and 100 in forward, -99 and -98 in output

_MARKS = ("streams4", "streams6", "udp4", "udp6")
"""Maps of a sandbox's table: virtual address to mark."""

Elements = dict[bytes, "bytes | Goto | None"]


class Ipvs:
    """The `Balancer` in IPVS. All nodes agree on a hashed target where backends came in the order of their addresses,
    as they do while a service grows; IPVS keeps the order in which it was told of them."""

    def mesh(self, ports: Sequence[Published], *, outside: str, overlay: str) -> Part:
        """A port without targets stays in the map, for the sake of connections that drain: what IPVS does not know
        comes to nobody in `ingress_sbox`, and is refused."""
        if not ports:
            return Part()
        marks: Elements = {}
        services: list[VirtualService] = []
        for port in sorted(ports, key=lambda p: (p.protocol, p.port)):
            mark = port_mark(port.protocol, port.port)
            marks[protocol_port(port.protocol, port.port)] = _element(port, mark)
            for version, _, family, _ in _FAMILIES:
                services += _service(port, version, family, mark, linger=port.protocol != "udp")
        table = Table(
            family="inet",
            name=TABLE,
            chains=_mesh_chains(outside, overlay),
            maps=(Map(name="ports", key=("inet_proto", "inet_service"), value=("mark",), elements=marks),),
        )
        return Part(tables=(table,), sysctls=SYSCTLS, ipvs=tuple(services))

    def vips(self, vips: Sequence[Virtual]) -> Part:
        """One table, nothing without virtual addresses."""
        if not vips:
            return Part()
        marks: dict[str, Elements] = {}
        first: dict[int, Elements] = {4: {}, 6: {}}
        backends: dict[int, Elements] = {4: {}, 6: {}}
        services: list[VirtualService] = []
        taken: set[int] = set()
        for vip in sorted(vips, key=lambda v: (v.address.version, int(v.address))):
            version, key = vip.address.version, vip.address.packed
            for protocol, linger in (("streams", True), ("udp", False)):
                mark = _vip_mark(key, protocol, taken)
                marks.setdefault(f"{protocol}{version}", {})[key] = _element(vip, mark)
                services += _service(vip, version, AF_INET if version == 4 else AF_INET6, mark, linger=linger)
            targets = vip.of_family(version)
            backends[version].update({target.address.packed: None for target in targets})
            if targets:
                first[version][key] = targets[0].address.packed
        maps = [Map(name="protocols", key=("inet_proto",), elements={bytes([n]): None for n in _STREAMS})]
        for number, _, _, kind in _FAMILIES:
            for protocol in ("streams", "udp"):
                name = f"{protocol}{number}"
                maps.append(Map(name=name, key=(kind,), value=("mark",), elements=marks.get(name, {})))
            maps.append(Map(name=f"first{number}", key=(kind,), value=(kind,), elements=first[number]))
            maps.append(Map(name=f"backends{number}", key=(kind,), elements=backends[number]))
            everyone = dict.fromkeys(marks.get(f"streams{number}", {}))
            maps.append(Map(name=f"{REFUSED}{number}", key=(kind,), elements=everyone, counts=True))
        table = Table(family="inet", name=TABLE, chains=_VIP_CHAINS, maps=tuple(maps))
        return Part(tables=(table,), sysctls=SYSCTLS, ipvs=tuple(services))


def port_mark(protocol: str, port: int) -> int:
    """Of both families: IPVS tells them apart."""
    return PROTOCOL_NUMBERS[protocol] << 16 | port


def vip_marks(table: Table) -> dict[int, Address]:
    """Which virtual address each mark of a sandbox's table stands for."""
    return {
        int.from_bytes(mark, sys.byteorder): ip_address(key)
        for found in table.maps
        if found.name in _MARKS
        for key, mark in found.elements.items()
        if isinstance(mark, bytes) and any(mark)
    }


def _element(entry: Balanced, mark: int) -> bytes:
    """Without targets that take new connections no mark: IPVS would refuse them by ICMP, which a caller who is just
    connecting notices a second later. It finds old connections without a mark."""
    return host_u32(mark if any(target.weight > 0 for target in entry.targets) else 0)


def _vip_mark(address: bytes, protocol: str, taken: set[int]) -> int:
    """The same for every process, without memory; two that meet are told apart by their order."""
    mark = zlib.crc32(protocol.encode() + address)
    while mark == 0 or mark in taken:
        mark = (mark + 1) & 0xFFFFFFFF
    taken.add(mark)
    return mark


def _service(entry: Balanced, version: int, family: int, mark: int, *, linger: bool) -> Iterator[VirtualService]:
    """None without targets."""
    targets = [target for target in entry.targets if target.address.version == version]
    if not targets:
        return
    scheduler, flags = _SCHEDULERS[entry.scheduler]
    yield VirtualService(
        family=family,
        mark=mark,
        scheduler=scheduler,
        flags=flags,
        linger=linger,
        destinations=_destinations(tuple(targets)),
    )


def _destinations(targets: Iterable[Target]) -> tuple[Destination, ...]:
    return tuple(Destination(address=target.address, weight=target.weight) for target in targets)


# --- the rules: written once, what varies is in the maps ---------------------------------------------------------


_STREAMS = (TCP, PROTOCOL_NUMBERS["sctp"])


def _filter(name: str, hook: str, priority: int, *rules: Rule) -> Chain:
    return Chain(name=name, hook=Hook(type="filter", hook=hook, priority=priority), rules=rules)


@lru_cache(maxsize=8)
def _mesh_chains(outside: str, overlay: str) -> tuple[Chain, ...]:
    load_source_port = (meta("l4proto"), payload(TRANSPORT_LAYER, 0, 2, 1))
    forth: tuple[Expr, ...] = (*match_iifname(outside), *load_protocol_port(), lookup("ports", 0, 0), meta_set("mark"))
    back: tuple[Expr, ...] = (*match_iifname(overlay), *load_source_port, lookup("ports", 0, 0))
    beginning = Rule(
        # what IPVS knows has this sandbox's own address as its source by now
        exprs=(*back, fib_type("saddr"), cmp(host_u32(RTN_LOCAL), equal=False), counter(), verdict(DROP)),
        comment="connections do not begin on the overlay",
    )
    return (
        _filter("raw", "prerouting", _RAW, Rule(exprs=(*forth, notrack())), Rule(exprs=(*back, notrack()))),
        _filter("forward", "forward", _BEHIND_IPVS_FORWARD, beginning),
    )


def _vip_chains() -> tuple[Chain, ...]:
    out, back, others, behind = [], [], [], []
    for version, family, _, _ in _FAMILIES:
        daddr = (*match_nfproto(family), load_destination(version))
        streams = (meta("l4proto"), lookup("protocols"))
        for proto, name in ((streams, "streams"), (match_l4proto(UDP), "udp")):
            out.append(Rule(exprs=(*proto, *daddr, lookup(f"{name}{version}", 0, 0), meta_set("mark"), notrack())))
            saddr = (*match_nfproto(family), load_source(version))
            back.append(Rule(exprs=(*proto, *saddr, lookup(f"backends{version}"), notrack())))
        others.append(Rule(exprs=(*daddr, lookup(f"first{version}", 0, 0), dnat(family, 0))))
        untranslated = (*daddr, lookup(f"{REFUSED}{version}"))
        behind.append(Rule(exprs=(*match_l4proto(TCP), *untranslated, reset()), comment="no backend"))
        behind.append(Rule(exprs=(*untranslated, unreachable()), comment="no backend"))
    # IPVS keeps the route towards the virtual address also when it leads a connection back to this very sandbox. A
    # chain of this type routes a packet anew when its mark changes; nor must the server's answers inherit the mark.
    ourselves = Rule(
        exprs=(
            meta("mark"),
            cmp(host_u32(0), equal=False),
            *match_local_destination(),
            immediate(host_u32(0)),
            meta_set("mark"),
        ),
        comment="a connection to ourselves",
    )
    return (
        _filter("raw", "output", _RAW, *out),
        _filter("replies", "prerouting", _RAW, *back),
        Chain(name="others", hook=Hook(type="nat", hook="output", priority=-100), rules=tuple(others)),
        Chain(name="route", hook=Hook(type="route", hook="output", priority=_BEHIND_IPVS_OUTPUT), rules=(ourselves,)),
        _filter("behind", "output", _BEHIND_IPVS_OUTPUT, *behind),
    )


_VIP_CHAINS = _vip_chains()
