"""The routing mesh's balancer in `ingress_sbox`: published port to backend, in nftables.

    packet in from eth1 -> ports: protocol . port -> chain of that port
    chain of a port     -> next slot of its own counter -> backends: protocol . port . slot -> address

Every published port counts for itself: a counter shared by services of equal size resonates (A, B, A, B, ... always
lands on the same slot). IPv4 and IPv6 count apart for the same reason. The numbers of a nat chain are looked at once
per connection; what follows is conntrack's.
"""

from collections.abc import Iterable
from functools import lru_cache

from hivemesh.model.addr import Address
from hivemesh.wire.control import PublishItem
from hivemesh.wire.nft import (
    ACCEPT,
    DROP,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    Chain,
    Expr,
    Goto,
    Hook,
    Map,
    Rule,
    Table,
    dnat,
    host_u32,
    load_protocol_port,
    lookup,
    match_iifname,
    match_l4proto,
    match_nfproto,
    meta,
    meta_set,
    numgen,
    protocol_port,
    verdict,
    vmap,
)

PORTS = "ports"
_FAMILIES = ((4, IPV4, "backends4", "ipv4_addr"), (6, IPV6, "backends6", "ipv6_addr"))


def port_chain(protocol: str, port: int) -> str:
    """The name of the chain of one published port."""
    return f"{protocol}-{port}"


def slots(publish: PublishItem, version: int) -> tuple[Address, ...]:
    """The backends of one family in slot order: by address, so that every node and every restart agree.

    Addresses are handed out in ascending order, so growing adds a last slot; a backend that goes moves those after it.
    """
    found = {address for backend in publish.backends for address in backend.addresses if address.version == version}
    return tuple(sorted(found, key=int))


@lru_cache(maxsize=4096)
def _spread(service: str, family: int, backends: str, count: int) -> Rule:
    """Equal for all ports of equal size, so that comparing two tables is mostly comparing identities."""
    # The slot goes through the packet mark: nft 1.0.6 aborts on listing numgen inside a concatenated key. The mark does
    # not leave the sandbox: crossing a veth into another namespace clears it.
    exprs: tuple[Expr, ...] = (
        *match_nfproto(family),
        numgen(count),
        meta_set("mark"),
        *load_protocol_port(0),
        meta("mark", 2),
        lookup(backends, 0, 0),
        dnat(family, 0),
    )
    return Rule(exprs=exprs, comment=service)


def mesh_table(publishes: Iterable[PublishItem], *, outside: str, overlay: str) -> Table:
    """Everything `ingress_sbox` has in nftables.

    `outside` is the interface towards the host, `overlay` the one on the ingress network. A port without backends is in
    no map: its packets stay in the sandbox, where nobody listens, and the kernel refuses them at once.
    """
    ports: dict[bytes, bytes | Goto | None] = {}
    backends: dict[str, dict[bytes, bytes | Goto | None]] = {name: {} for _, _, name, _ in _FAMILIES}
    chains: list[Chain] = []
    for publish in sorted(publishes, key=lambda p: (p.protocol, p.port)):
        key = protocol_port(publish.protocol, publish.port)
        rules = []
        for version, family, name, _ in _FAMILIES:
            addresses = slots(publish, version)
            for slot, address in enumerate(addresses):
                backends[name][key + host_u32(slot)] = address.packed
            if addresses:
                rules.append(_spread(publish.service_name, family, name, len(addresses)))
        if rules:
            chain = port_chain(publish.protocol, publish.port)
            ports[key] = Goto(chain)
            chains.append(Chain(name=chain, rules=tuple(rules)))
    into = Rule(exprs=(*match_iifname(outside), *load_protocol_port(), vmap(PORTS)))
    # Connections begin outside, never on the overlay: a task cannot use this sandbox as its way out. A nat chain sees
    # only the first packet of each, so that this costs nothing afterwards.
    from_overlay = [
        Rule(exprs=(*match_iifname(overlay), *match_l4proto(protocol), verdict(ACCEPT))) for protocol in (ICMP, ICMPV6)
    ]
    refuse = Rule(exprs=(*match_iifname(overlay), verdict(DROP)), comment="connections do not begin on the overlay")
    prerouting = Chain(
        name="prerouting",
        hook=Hook(type="nat", hook="prerouting", priority=-100),
        rules=(into, *from_overlay, refuse),
    )
    key_type = ("inet_proto", "inet_service")
    return Table(
        family="inet",
        name="hivemesh",
        chains=(prerouting, *chains),
        maps=(
            Map(name=PORTS, key=key_type, value=("verdict",), elements=ports),
            *(
                Map(name=name, key=(*key_type, "mark"), value=(kind,), elements=backends[name])
                for _, _, name, kind in _FAMILIES
            ),
        ),
    )
