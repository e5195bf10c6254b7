"""What is counted of the connections through published ports, apart from whoever balances them. In `ingress_sbox`:

    begun     a backend's new connections              nat chains see the first packet of a connection only
    refused   new connections that nobody was asked to serve: they end in `ingress_sbox`, which refuses them
    toward, back   packets and bytes to a backend and from it: one look-up on the way of each packet, if wanted

Keys are the backend's address, the protocol and the port's number inside, as the packet has them between the balancer
and the overlay. Each backend has its own elements, so that what was counted stays while others come and go.

A table for each family, and one chain for both directions: a packet meets two rules at most, and the second of them
only on its way back. Of the 50 microseconds that a request of a kept connection takes on one processor, that is one.

IPVS hands a packet on as one of the sandbox's own, past forwarding; and what it balances passes connection tracking by:
there bytes are counted here, connections by IPVS itself, and what it refuses is whatever it leaves to the sandbox.

Ports in host mode: their connections count in the host's maps (`host.py`), their bytes in the sandbox of their task:
packets of the mesh cross the host too, and are not to be looked up there.
"""

from collections.abc import Iterable

from hivemesh.model.addr import Address
from hivemesh.model.service import PortConfig
from hivemesh.wire.control import PublishItem
from hivemesh.wire.nft import (
    ACCEPT,
    CT_STATE_NEW,
    CT_STATE_UNTRACKED,
    Chain,
    Expr,
    Hook,
    Map,
    Rule,
    Table,
    load_destination,
    load_destination_port,
    load_protocol_port,
    load_source,
    load_source_port,
    lookup,
    match_ct_state,
    match_iifname,
    match_oifname,
    meta,
    protocol_port,
    verdict,
)

TRAFFIC_TABLE = "hivemesh-traffic"
BEGUN, TOWARD, BACK, REFUSED = "begun", "toward", "back", "refused"
_FAMILIES = (("ip", 4, "ipv4_addr", 1), ("ip6", 6, "ipv6_addr", 4))
"""With the version, the type of an address, and how many registers one takes."""
_EARLY, _LATE, _BEHIND_IPVS = -150, 90, 110
"""Priorities: that of mangle, before IPVS gives a reply the address its client asked (-99); just before srcnat; and
after IPVS took what it has a backend for (98, 99)."""


def traffic_tables(
    publishes: Iterable[PublishItem], *, outside: str, overlay: str, with_bytes: bool
) -> tuple[Table, ...]:
    """For `ingress_sbox`, with its two interfaces."""
    items = tuple(publishes)
    return tuple(
        _table(items, family, version, outside=outside, overlay=overlay, with_bytes=with_bytes)
        for family, version, _, _ in _FAMILIES
    )


def host_mode_tables(ports: Iterable[PortConfig], *, gateway: str) -> tuple[Table, ...]:
    """For a sandbox whose task publishes `ports` in host mode, reached over its interface `gateway`: bytes each way, by
    protocol and the port that the task listens at. A table for each family."""
    keys = {protocol_port(port.protocol, port.target_port): None for port in ports}
    if not keys:
        return ()
    maps = tuple(
        Map(name=what, key=("inet_proto", "inet_service"), elements=keys, counts=True) for what in (TOWARD, BACK)
    )
    back = (*match_oifname(gateway), meta("l4proto"), load_source_port(1), lookup(BACK))
    chains = (
        Chain(
            name="in",
            hook=Hook(type="filter", hook="input", priority=_EARLY),
            rules=(Rule(exprs=(*match_iifname(gateway), *load_protocol_port(), lookup(TOWARD))),),
        ),
        Chain(name="out", hook=Hook(type="filter", hook="output", priority=_EARLY), rules=(Rule(exprs=back),)),
    )
    return tuple(Table(family=family, name=TRAFFIC_TABLE, maps=maps, chains=chains) for family, *_ in _FAMILIES)


def backend_key(address: Address, protocol: str, port: int) -> bytes:
    """`port` is the number inside."""
    return address.packed + protocol_port(protocol, port)


def _table(
    items: tuple[PublishItem, ...], family: str, version: int, *, outside: str, overlay: str, with_bytes: bool
) -> Table:
    _, _, kind, words = _FAMILIES[version == 6]
    keys = dict.fromkeys(_keys(items, version))
    service = ("inet_proto", "inet_service")
    counted = (BEGUN, TOWARD, BACK) if with_bytes else (BEGUN,)
    maps = [Map(name=what, key=(kind, *service), elements=keys, counts=True) for what in counted]
    ports = dict.fromkeys(protocol_port(item.protocol, item.inside) for item in items)
    maps.append(Map(name=REFUSED, key=service, elements=ports, counts=True))

    def toward(name: str) -> tuple[Expr, ...]:
        end = (load_destination(version), meta("l4proto", words), load_destination_port(words + 1))
        return (*match_oifname(overlay), *end, lookup(name))

    # Asking for the state switches connection tracking on: without any backend nothing else does, and no nat chain is
    # ever called
    def refused(state: int) -> Rule:
        end = (*load_protocol_port(), lookup(REFUSED))
        return Rule(exprs=(*match_iifname(outside), *match_ct_state(state), *end))

    chains = [
        Chain(
            name="begun",
            hook=Hook(type="nat", hook="postrouting", priority=_LATE),
            rules=(Rule(exprs=toward(BEGUN)),),
        ),
        Chain(name="refused", hook=Hook(type="nat", hook="input", priority=_LATE), rules=(refused(CT_STATE_NEW),)),
        Chain(
            name="left_over",
            hook=Hook(type="filter", hook="input", priority=_BEHIND_IPVS),
            rules=(refused(CT_STATE_UNTRACKED),),
        ),
    ]
    if with_bytes:
        back = (load_source(version), meta("l4proto", words), load_source_port(words + 1), lookup(BACK))
        through = (Rule(exprs=(*toward(TOWARD), verdict(ACCEPT))), Rule(exprs=(*match_iifname(overlay), *back)))
        chains += [
            Chain(name="through", hook=Hook(type="filter", hook="forward", priority=_EARLY), rules=through),
            Chain(name="handed_on", hook=Hook(type="filter", hook="output", priority=_EARLY), rules=through[:1]),
        ]
    return Table(family=family, name=TRAFFIC_TABLE, maps=tuple(maps), chains=tuple(chains))


def _keys(items: Iterable[PublishItem], version: int) -> Iterable[bytes]:
    for item in items:
        for backend in item.backends:
            for address in backend.addresses:
                if address.version == version:
                    yield backend_key(address, item.protocol, item.inside)
