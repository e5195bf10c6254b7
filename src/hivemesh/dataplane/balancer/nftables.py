"""The balancer every kernel has: nftables, by verdict maps and small chains.

    mesh   packet in from eth1 -> ports: protocol . port -> chain of that port
    VIPs   packet of our own   -> vips4, vips6: address  -> chain of that address, or `refuse`
    chain  slot := next of its own counter, or hash of the client's address
           backends4, backends6: entry . slot -> address

Every entry counts for itself: a counter shared by services of equal size resonates (A, B, A, B, ... always lands on the
same slot). IPv4 and IPv6 count apart for the same reason. The rules of a nat chain are looked at once per connection;
what follows is conntrack's. The slot stays in the connection's mark, where `conntrack -L` shows it.

Elements of vips4 and vips6 count the connections that begin there: to backends, or refused.

What varies is elements of maps; chains and rules change with the number of slots only. All fragments are kept, so that
a change of one among many entries builds one, and comparing two tables is mostly comparing identities.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from hivemesh.dataplane.balancer.api import Balanced, Part, Published, Virtual
from hivemesh.dataplane.balancer.slots import consistent, in_turn
from hivemesh.model.addr import Address
from hivemesh.model.ids import ServiceID
from hivemesh.model.service import Scheduler
from hivemesh.wire.nft import (
    ACCEPT,
    CT_STATE_NEW,
    DROP,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    TCP,
    Chain,
    Expr,
    Goto,
    Hook,
    Map,
    Rule,
    Table,
    counter,
    ct,
    ct_set,
    dnat,
    host_u32,
    jhash,
    load_destination,
    load_protocol_port,
    load_source,
    lookup,
    match_ct_state,
    match_iifname,
    match_l4proto,
    match_nfproto,
    numgen,
    protocol_port,
    reset,
    unreachable,
    verdict,
    vmap,
)

MESH_TABLE = "hivemesh"
VIP_TABLE = "hivemesh-vips"
PORTS = "ports"
REFUSE = "refuse"
_TO_REFUSE = Goto(REFUSE)
_FAMILIES = ((4, IPV4, "backends4", "ipv4_addr"), (6, IPV6, "backends6", "ipv6_addr"))

Elements = dict[bytes, "bytes | Goto | None"]


class Nftables:
    """The `Balancer` in nftables. Least connections are beyond it: `lc` is served in turn."""

    def mesh(self, ports: Sequence[Published], *, outside: str, overlay: str) -> Part:
        """A port without targets is in no map: its packets stay in `ingress_sbox`, where nobody listens."""
        entries: Elements = {}
        backends: dict[str, Elements] = {name: {} for _, _, name, _ in _FAMILIES}
        chains: list[Chain] = []
        for port in sorted(ports, key=lambda p: (p.protocol, p.port)):
            chain, elements = _of_port(port)
            if not chain.rules:
                continue
            entries[protocol_port(port.protocol, port.port)] = _goto(chain.name)
            chains.append(chain)
            for name, found in elements.items():
                backends[name].update(found)
        key = ("inet_proto", "inet_service")
        table = Table(
            family="inet",
            name=MESH_TABLE,
            chains=(_mesh_prerouting(outside, overlay), *chains),
            maps=(
                Map(name=PORTS, key=key, value=("verdict",), elements=entries),
                *(
                    Map(name=name, key=(*key, "mark"), value=(kind,), elements=backends[name])
                    for _, _, name, kind in _FAMILIES
                ),
            ),
        )
        return Part(tables=(table,))

    def vips(self, vips: Sequence[Virtual]) -> Part:
        """One table, nothing without virtual addresses."""
        if not vips:
            return Part()
        entries: dict[int, Elements] = {4: {}, 6: {}}
        backends: dict[int, Elements] = {4: {}, 6: {}}
        chains: list[Chain] = []
        for vip in sorted(vips, key=lambda v: (v.address.version, v.address.packed)):
            version = vip.address.version
            goto, chain, elements = _of_vip(vip)
            entries[version][vip.address.packed] = goto
            if chain:
                chains.append(chain)
                backends[version].update(elements)
        maps: list[Map] = []
        for family, _, name, kind in _FAMILIES:
            maps.append(
                Map(name=f"vips{family}", key=(kind,), value=("verdict",), elements=entries[family], counts=True)
            )
            maps.append(Map(name=name, key=(kind, "mark"), value=(kind,), elements=backends[family]))
        table = Table(family="inet", name=VIP_TABLE, chains=(_VIP_OUTPUT, _REFUSE, *chains), maps=tuple(maps))
        return Part(tables=(table,))


def port_chain(protocol: str, port: int) -> str:
    """The name of the chain of one published port."""
    return f"{protocol}-{port}"


def vip_chain(address: Address) -> str:
    """The name of the chain of one virtual address; nft has no colons in names."""
    return f"vip-{address}".replace(":", "-")


# --- one entry -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def _of_port(port: Published) -> tuple[Chain, Mapping[str, Elements]]:
    key = protocol_port(port.protocol, port.port)
    rules, elements = [], {}
    for version, _, name, _ in _FAMILIES:
        slots = slots_of(port, version)
        if slots:
            rules.append(_spread(version, _BY_PORT, len(slots), port.name, *_affinity(port)))
            elements[name] = _numbered(key, slots)
    return Chain(name=port_chain(port.protocol, port.port), rules=tuple(rules)), elements


@lru_cache(maxsize=16384)
def _of_vip(vip: Virtual) -> tuple[Goto, Chain | None, Elements]:
    slots = slots_of(vip, vip.address.version)
    if not slots:
        return _TO_REFUSE, None, {}
    name = vip_chain(vip.address)
    rule = _spread(vip.address.version, _BY_ADDRESS, len(slots), vip.name, *_affinity(vip))
    return _goto(name), Chain(name=name, rules=(rule,)), _numbered(vip.address.packed, slots)


@lru_cache(maxsize=16384)
def _goto(chain: str) -> Goto:
    return Goto(chain)


def slots_of(entry: Balanced, version: int) -> tuple[Address, ...]:
    """The addresses of one family in slot order; an address may have several slots."""
    found = entry.of_family(version)
    return consistent(found) if entry.scheduler == "maglev" else in_turn(found)


def _numbered(key: bytes, slots: Sequence[Address]) -> Elements:
    return {key + host_u32(slot): address.packed for slot, address in enumerate(slots)}


def _affinity(entry: Balanced) -> tuple[Scheduler, ServiceID]:
    """Services differ in where they lead a client only if it is the client that decides: else rules are shared."""
    return (entry.scheduler, entry.service) if entry.scheduler in ("source", "maglev") else ("rr", ServiceID(""))


def hash_seed(service: ServiceID) -> int:
    return zlib.crc32(service.encode())


_BY_PORT, _BY_ADDRESS = "port", "address"


@lru_cache(maxsize=16384)
def _spread(version: int, by: str, count: int, comment: str, scheduler: Scheduler, service: ServiceID) -> Rule:
    """Equal for all entries of one service and size: the same object."""
    _, family, backends, _ = _FAMILIES[version == 6]
    if scheduler == "rr":
        choose: tuple[Expr, ...] = (numgen(count),)
    else:
        # the seed is the service's: two services of equal size lead a client to different nodes
        choose = (load_source(version), jhash(version_length(version), count, hash_seed(service)))
    if by == _BY_PORT:
        key: tuple[Expr, ...] = (*load_protocol_port(0), ct("mark", 2))
    else:
        key = (load_destination(version), ct("mark", version_length(version) // 4))
    # The slot goes through a mark: nft 1.0.6 aborts on listing numgen inside a concatenated key. The packet's mark is
    # no place for it, since a packet that gets another destination is routed anew, and by its mark.
    exprs = (*match_nfproto(family), *choose, ct_set("mark"), *key, lookup(backends, 0, 0), dnat(family, 0))
    return Rule(exprs=exprs, comment=comment)


def version_length(version: int) -> int:
    """Bytes of an address."""
    return 4 if version == 4 else 16


# --- what is there once ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _mesh_prerouting(outside: str, overlay: str) -> Chain:
    """Connections begin outside, never on the overlay: a task cannot use this sandbox as its way out."""
    into = Rule(exprs=(*match_iifname(outside), *load_protocol_port(), vmap(PORTS)))
    from_overlay = [
        Rule(exprs=(*match_iifname(overlay), *match_l4proto(protocol), verdict(ACCEPT))) for protocol in (ICMP, ICMPV6)
    ]
    refuse = Rule(
        exprs=(*match_iifname(overlay), counter(), verdict(DROP)), comment="connections do not begin on the overlay"
    )
    hook = Hook(type="nat", hook="prerouting", priority=-100)
    return Chain(name="prerouting", hook=hook, rules=(into, *from_overlay, refuse))


_VIP_OUTPUT = Chain(
    name="output",
    hook=Hook(type="nat", hook="output", priority=-100),
    rules=(
        Rule(exprs=(*match_nfproto(IPV4), load_destination(4), vmap("vips4"))),
        Rule(exprs=(*match_nfproto(IPV6), load_destination(6), vmap("vips6"))),
    ),
)
_REFUSE = Chain(
    name=REFUSE,
    rules=(
        # What asks for conntrack switches it on for the namespace; without, no nat chain is ever called
        Rule(exprs=(*match_ct_state(CT_STATE_NEW), *match_l4proto(TCP), reset()), comment="no backend"),
        Rule(exprs=(unreachable(),), comment="no backend"),
    ),
)
