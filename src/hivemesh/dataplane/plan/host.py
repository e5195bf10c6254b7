"""The host's own namespace: the gateway bridge, published ports on their way in, containers on their way out."""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network

from hivemesh.dataplane.plan.facts import HostFacts, HostPort
from hivemesh.dataplane.plan.names import GATEWAY_ALIAS, GATEWAY_BRIDGE, TABLE
from hivemesh.kernel.api import HOST, Bridge, LinkAddress, NamespacePlan, Neighbor, Route
from hivemesh.model.addr import Address, mac_of
from hivemesh.wire.control import PublishItem
from hivemesh.wire.nft import (
    ACCEPT,
    CT_STATUS_DNAT,
    DROP,
    GOTO,
    IPV4,
    IPV6,
    UDP,
    Chain,
    Expr,
    Goto,
    Hook,
    Map,
    Rule,
    Table,
    bits,
    cmp,
    counter,
    dnat,
    immediate,
    load_destination,
    load_destination_port,
    load_protocol_port,
    load_source,
    lookup,
    masquerade,
    match_ct_status,
    match_l4proto,
    match_local_destination,
    match_local_source,
    match_nfproto,
    match_not_forwarded,
    match_oifname,
    match_source,
    notrack,
    protocol_port,
    snat,
    verdict,
)

LOOPBACK6 = IPv6Network("::1/128")
LOCAL_TABLE = 255
HOST_PORTS = "host_ports"
"""The maps, by version: protocol and port to an address and the port there."""

_KEY = ("inet_proto", "inet_service")
_BEFORE_OTHERS = 10
"""How much earlier than the usual nat priorities our chains run: the first nat chain that decides wins, and what Docker
or a firewall masquerades in general must not win over a published port."""


def plan_host(
    facts: HostFacts,
    publishes: Iterable[PublishItem],
    host_ports: Iterable[HostPort],
    vteps: Iterable[Address],
    vxlan_port: int,
) -> NamespacePlan:
    """What the host holds: never more than our bridge, our table, and the settings forwarding needs."""
    sysctls = forwarding_settings(facts) | {
        f"net/ipv4/conf/{GATEWAY_BRIDGE}/send_redirects": "0",
        # replies to 127.0.0.1 come in from the bridge
        f"net/ipv4/conf/{GATEWAY_BRIDGE}/route_localnet": "1",
        # until duplicate address detection is over, a second or two, the bridge could not ask for a container's MAC
        f"net/ipv6/conf/{GATEWAY_BRIDGE}/accept_dad": "0",
    }
    # The bridge's MAC would be the lowest of its ports' and change as containers come and go
    bridge = Bridge(name=GATEWAY_BRIDGE, mtu=facts.vtep_mtu, mac=mac_of(facts.gateway4.ip), alias=GATEWAY_ALIAS)
    ingress_mac = mac_of(facts.ingress4.ip)
    return NamespacePlan(
        namespace=HOST,
        mark="",
        links=(bridge,),
        addresses=frozenset(LinkAddress(link=GATEWAY_BRIDGE, address=a) for a in (facts.gateway4, facts.gateway6)),
        neighbors=frozenset(
            Neighbor(link=GATEWAY_BRIDGE, address=a.ip, mac=ingress_mac) for a in (facts.ingress4, facts.ingress6)
        ),
        # Replies to ::1 come in from the bridge, and the kernel looks such an address up for that interface only (IPv6
        # has no route_localnet): without this route they are unreachable. lo's own has the better metric.
        routes=frozenset({Route(destination=LOOPBACK6, link=GATEWAY_BRIDGE, table=LOCAL_TABLE, local=True)}),
        sysctls=sysctls,
        tables=(_table(facts, publishes, host_ports, vteps, vxlan_port),),
    )


def forwarding_settings(facts: HostFacts) -> dict[str, str]:
    """Of the machine as a whole, whatever is forwarded."""
    settings = {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        # `all` and the interface's own are or-ed: with `all` 0 every other interface keeps what it has
        "net/ipv4/conf/all/send_redirects": "0",
    }
    if not facts.keep_bridge_filter:
        settings |= {f"net/bridge/bridge-nf-call-{what}": "0" for what in ("iptables", "ip6tables")}
    for interface in facts.ra_interfaces:
        settings[f"net/ipv6/conf/{interface}/accept_ra"] = "2"
    return settings


def _table(
    facts: HostFacts,
    publishes: Iterable[PublishItem],
    host_ports: Iterable[HostPort],
    vteps: Iterable[Address],
    vxlan_port: int,
) -> Table:
    ports = tuple(host_ports)
    senders = tuple(vteps)
    mesh = tuple(publishes)
    chosen = _chosen(facts, mesh)
    maps = (
        Map(
            name="published",
            key=_KEY,
            elements={protocol_port(p.protocol, p.port): None for p in mesh if p.addresses is None and not p.door},
        ),
        *(
            Map(
                name=f"{HOST_PORTS}{version}",
                key=_KEY,
                value=(f"ipv{version}_addr", "inet_service"),
                elements={
                    protocol_port(p.protocol, p.port): _target(sandbox, p.door)
                    for p in mesh
                    if p.addresses is None and p.door
                }
                | {protocol_port(p.protocol, p.port): _target(p.v4 if version == 4 else p.v6, p.target) for p in ports},
                counts=facts.counts != "off",  # connections: only their first packets come here
            )
            for version, sandbox in ((4, facts.ingress4.ip), (6, facts.ingress6.ip))
        ),
        *chosen.values(),
        Map(name="vteps4", key=("ipv4_addr",), elements={v.packed: None for v in senders if v.version == 4}),
        Map(name="vteps6", key=("ipv6_addr",), elements={v.packed: None for v in senders if v.version == 6}),
    )
    to_us = Rule(exprs=(*match_local_destination(), verdict(GOTO, "ports")))
    chains = (
        Chain(name="ports", rules=(*_to_chosen(chosen), *_ports(facts))),
        Chain(
            name="prerouting", hook=Hook(type="nat", hook="prerouting", priority=-100 - _BEFORE_OTHERS), rules=(to_us,)
        ),
        Chain(name="output", hook=Hook(type="nat", hook="output", priority=-100 - _BEFORE_OTHERS), rules=(to_us,)),
        Chain(name="as_node", rules=_as_node(facts)),
        Chain(
            name="postrouting",
            hook=Hook(type="nat", hook="postrouting", priority=100 - _BEFORE_OTHERS),
            rules=_postrouting(facts),
        ),
        *_vxlan(vxlan_port),
    )
    return Table(family="inet", name=TABLE, chains=chains, maps=maps)


def _target(address: Address, port: int) -> bytes | Goto | None:
    return address.packed + port.to_bytes(2, "big") + b"\0\0"


def _chosen(facts: HostFacts, mesh: Iterable[PublishItem]) -> dict[tuple[int, int], Map]:
    """What is published on chosen addresses, by family and length of their prefix: a map from the masked destination
    and the port to `ingress_sbox`, and the number by which it knows the port. The longest prefixes come first."""
    elements: dict[tuple[int, int], dict[bytes, bytes | Goto | None]] = {}
    for item in mesh:
        for prefix in item.addresses or ():
            sandbox = facts.ingress4.ip if prefix.version == 4 else facts.ingress6.ip
            key = prefix.network_address.packed + protocol_port(item.protocol, item.port)
            elements.setdefault((prefix.version, prefix.prefixlen), {})[key] = _target(sandbox, item.inside)
    return {
        (version, length): Map(
            name=f"chosen{version}_{length}",
            key=(f"ipv{version}_addr", *_KEY),
            value=(f"ipv{version}_addr", "inet_service"),
            elements=elements[version, length],
        )
        for version, length in sorted(elements, key=lambda k: (k[0], -k[1]))
    }


def _to_chosen(chosen: Mapping[tuple[int, int], Map]) -> Iterable[Rule]:
    for (version, length), found in chosen.items():
        family, width, bytes_ = (IPV4, 1, 4) if version == 4 else (IPV6, 4, 16)
        whole = length == 8 * bytes_
        mask = ((1 << length) - 1 << 8 * bytes_ - length).to_bytes(bytes_, "big")
        yield Rule(
            exprs=(
                *match_nfproto(family),
                load_destination(version),
                *(() if whole else (bits(mask),)),
                *load_protocol_port(width),
                lookup(found.name, 0, 0),
                dnat(family, 0, width),
            ),
            comment="published on chosen addresses",
        )


def _ports(facts: HostFacts) -> tuple[Rule, ...]:
    """Published in host mode: to the container, port translated. In ingress mode: to `ingress_sbox`, port kept, unless
    the mesh knows it by another number, which is in the same maps."""
    rules = []
    for family, name, port_register in ((IPV4, f"{HOST_PORTS}4", 1), (IPV6, f"{HOST_PORTS}6", 4)):
        rules.append(
            Rule(
                exprs=(
                    *match_nfproto(family),
                    *load_protocol_port(),
                    lookup(name, 0, 0),
                    dnat(family, 0, port_register),
                )
            )
        )
    for family, sandbox in ((IPV4, facts.ingress4.ip), (IPV6, facts.ingress6.ip)):
        rules.append(
            Rule(
                exprs=(
                    *match_nfproto(family),
                    *load_protocol_port(),
                    lookup("published"),
                    immediate(sandbox.packed),
                    dnat(family, 0),
                )
            )
        )
    return tuple(rules)


def _postrouting(facts: HostFacts) -> tuple[Rule, ...]:
    """nat chains see the first packet of a connection only: none of this costs anything afterwards."""
    own = (facts.gateway4.network, facts.gateway6.network)
    return (
        Rule(exprs=(*match_oifname(GATEWAY_BRIDGE), *match_ct_status(CT_STATUS_DNAT), verdict(GOTO, "as_node"))),
        Rule(exprs=(*match_oifname(GATEWAY_BRIDGE), *match_local_source(), verdict(ACCEPT))),
        Rule(
            exprs=(*match_oifname(GATEWAY_BRIDGE), counter(), verdict(DROP)),
            comment="containers are reached by published ports only",
        ),
        *(Rule(exprs=(*match_source(prefix), masquerade()), comment="containers go out as the node") for prefix in own),
    )


def _as_node(facts: HostFacts) -> tuple[Rule, ...]:
    """Clients without an address of their own outside this node appear as the node.

    127.0.0.1 and ::1 exist everywhere, and so do the containers' gateway addresses: a task on another node would answer
    its own neighbour, and `ingress_sbox` would answer over the bridge, past the host's conntrack.
    """
    rules = []
    for node, gateway, family, inside in (
        (facts.node_v4, facts.gateway4, IPV4, (IPv4Network("127.0.0.0/8"), facts.gateway4.network)),
        (facts.node_v6, facts.gateway6, IPV6, (LOOPBACK6, facts.gateway6.network)),
    ):
        shown = node or gateway.ip
        rules += [Rule(exprs=(*match_source(prefix), immediate(shown.packed), snat(family, 0))) for prefix in inside]
    return tuple(rules)


def _vxlan(port: int) -> tuple[Chain, ...]:
    """VXLAN from members of the cluster only, and past conntrack.

    Tracked, each tunnelled flow would be one more entry in the host's table (its outer source port is a hash of the
    inner flow) and one more look-up per packet; measured, new connections through the mesh gain about 6 %.

    Every packet of the overlays passes here twice, so one look-up answers both questions, and the port is compared
    first: the kernel reads it without a call. Whoever is no member is turned away before routing; what is only to be
    forwarded, as from a container with a tunnel of its own, goes on. Anything else may be ours, broadcasts too.
    """
    tunnel = (load_destination_port(), cmp(port.to_bytes(2, "big")), *match_l4proto(UDP))
    families = ((4, IPV4, "vteps4"), (6, IPV6, "vteps6"))

    def members(load: Callable[[int], Expr]) -> tuple[Rule, ...]:
        return tuple(
            Rule(exprs=(*match_nfproto(f), load(v), lookup(name), notrack(), verdict(ACCEPT)))
            for v, f, name in families
        )

    return (
        Chain(
            name="from_peers",
            rules=(
                *members(load_source),
                Rule(
                    exprs=(*match_not_forwarded(), counter(), verdict(DROP)),
                    comment="VXLAN from members of the cluster only",
                ),
            ),
        ),
        Chain(name="to_peers", rules=members(load_destination)),
        Chain(
            name="tunnels_in",
            hook=Hook(type="filter", hook="prerouting", priority=-300),
            rules=(Rule(exprs=(*tunnel, verdict(GOTO, "from_peers"))),),
        ),
        Chain(
            name="tunnels_out",
            hook=Hook(type="filter", hook="output", priority=-300),
            rules=(Rule(exprs=(*tunnel, verdict(GOTO, "to_peers"))),),
        ),
    )
