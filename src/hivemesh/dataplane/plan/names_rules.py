"""Questions for names: what leads them from port 53 to the resolver, and its answers back. Pure.

The resolver listens in each sandbox on 127.0.0.11, but on a port of its own, so that a container can have port 53 for
itself. Ports are rewritten on the way out of the socket, both ways, before conntrack, which is told to leave these
packets alone: a question costs no entry and no look-up, and conntrack's limits never lose one.
"""

from ipaddress import ip_address

from hivemesh.wire.nft import (
    ACCEPT,
    IPV4,
    TCP,
    TRANSPORT_LAYER,
    UDP,
    Chain,
    Expr,
    Hook,
    Rule,
    Table,
    cmp,
    host_u32,
    immediate,
    load_destination,
    load_source,
    match_l4proto,
    match_nfproto,
    meta,
    notrack,
    payload,
    payload_set,
    verdict,
)
from hivemesh.wire.resolver import RESOLVER_ADDRESS, RESOLVER_PORT

NAMES_TABLE = "hivemesh-names"
_LOOPBACK_INDEX = 1  # of `lo`, in every namespace
_CHECKSUM_AT = {UDP: 6, TCP: 16}
_SOURCE_PORT_AT, _DESTINATION_PORT_AT = 0, 2
_ASKED_PORT = (53).to_bytes(2, "big")
_REAL_PORT = RESOLVER_PORT.to_bytes(2, "big")
_ADDRESS = ip_address(RESOLVER_ADDRESS).packed


def _rewrite(protocol: int, load_address: Expr, port_at: int, port: bytes, becomes: bytes, comment: str) -> Rule:
    """Where the packet has the resolver's address and `port`, the port `becomes` the other one."""
    return Rule(
        exprs=(
            *match_nfproto(IPV4),
            load_address,
            cmp(_ADDRESS),
            *match_l4proto(protocol),
            payload(TRANSPORT_LAYER, port_at, 2),
            cmp(port),
            notrack(),
            immediate(becomes),
            payload_set(TRANSPORT_LAYER, port_at, 2, checksum=_CHECKSUM_AT[protocol]),
        ),
        comment=comment,
    )


def _rules() -> tuple[Rule, ...]:
    # what leaves the sandbox pays for one comparison
    elsewhere = Rule(exprs=(meta("oif"), cmp(host_u32(_LOOPBACK_INDEX), equal=False), verdict(ACCEPT)))
    found = [elsewhere]
    for protocol in (UDP, TCP):
        to, back = load_destination(4), load_source(4)
        found.append(_rewrite(protocol, to, _DESTINATION_PORT_AT, _ASKED_PORT, _REAL_PORT, "to the resolver"))
        found.append(_rewrite(protocol, back, _SOURCE_PORT_AT, _REAL_PORT, _ASKED_PORT, "from the resolver"))
    return tuple(found)


NAMES = Table(
    family="inet",
    name=NAMES_TABLE,
    chains=(Chain(name="output", hook=Hook(type="filter", hook="output", priority=-300), rules=_rules()),),
)
"""The same in every sandbox."""
