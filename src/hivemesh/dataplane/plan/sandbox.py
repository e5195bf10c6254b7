"""A task's own namespace: its interfaces, and what lets connections through the mesh keep their client's address.

A packet from the mesh carries the client's address, so the reply must find its own way to the ingress sandbox it came
through, on whichever node that is. Nothing here knows the nodes. An endpoint's MAC is 02:42 and four bytes that are
unique in the network, and a source MAC survives bridges and VXLAN, so:

    in   mark := last four bytes of the source MAC                      (one rule)
         tcp_fwmark_accept, fwmark_reflect: sockets and resets keep it  (no rule)
    out  by source address: from the ingress subnet -> table 4900 -> a gateway that does not exist, 02:42:00:00:00:00
         last four bytes of the destination MAC := mark                 (one rule)

One client may come with the same port through two nodes: two connections with equal addresses and ports here. Conntrack
keeps them apart by a zone per ingress node for the original direction; their replies share zone 0, so the second one
clashes there and gets another source port from the (empty) nat chain on input.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6

from hivemesh.dataplane.balancer.api import Part
from hivemesh.dataplane.plan import facts as node
from hivemesh.dataplane.plan.bridge import NO_LOCALS, Locals, asked_at, local_link, way_out
from hivemesh.dataplane.plan.names import TABLE, gateway_port, sandbox_mark, sandbox_namespace
from hivemesh.dataplane.plan.names_rules import NAMES
from hivemesh.dataplane.plan.traffic import host_mode_tables
from hivemesh.dataplane.plan.wiring import (
    ANYWHERE4,
    ANYWHERE6,
    endpoint_link,
    gateway_link,
    gateway_neighbors,
    gateway_routes,
    sandbox_sysctls,
)
from hivemesh.kernel.api import Link, LinkAddress, NamespacePlan, Neighbor, Route, Rule
from hivemesh.model.addr import MAC, first_v4, first_v6
from hivemesh.model.ids import NetworkID
from hivemesh.model.privilege import network_settings
from hivemesh.model.service import Door, PortConfig, number_inside
from hivemesh.model.task import Attachment, Task
from hivemesh.wire import nft
from hivemesh.wire.control import NetworkItem

REPLY_TABLE = 4900
"""The routing table of replies into the mesh."""
BY_SOURCE, BY_MARK = 100, 101
"""Priorities of the policy rules that lead there."""
FAKE_GATEWAY4 = IPv4Address("169.254.42.1")
FAKE_GATEWAY6 = IPv6Address("fe80::42:1")
FAKE_GATEWAY_MAC = MAC("02:42:00:00:00:00")
"""Link-local, so that it is no address the allocator could give away; each frame gets the real MAC on its way out."""
INGRESS_LINK = "eth0"
NO_VIPS = Part()


def plan_sandbox(
    task: Task,
    networks: Mapping[NetworkID, NetworkItem],
    facts: node.HostFacts,
    lease: node.GatewayLease | None,
    vips: Part = NO_VIPS,
    local: Locals = NO_LOCALS,
) -> NamespacePlan:
    """The sandbox of `task`. Interfaces: ingress, gateway bridge (with a `lease`), then user networks as listed.

    Networks the view does not have (any more) are left out. `vips` is what balances the services of these networks.
    `local` are networks of this node: through one of them leads the way out, if any leads out.
    """
    here = [(a, networks[a.network_id]) for a in task.attachments if a.network_id in networks]
    ingress = next(((a, n) for a, n in here if n.ingress), None)
    links: list[Link] = []
    addresses: set[LinkAddress] = set()
    routes: set[Route] = set()
    rules: set[Rule] = set()
    neighbors: set[Neighbor] = set()
    sysctls = sandbox_sysctls() | {
        # as Docker's containers have them
        "net/ipv4/ip_unprivileged_port_start": "0",
        "net/ipv4/ping_group_range": "0 2147483647",
    }
    sysctls |= network_settings(task.spec.container_spec.sysctls)
    tables: tuple[nft.Table, ...] = ()

    def attach(endpoint: Attachment, network: NetworkItem) -> None:
        name = f"eth{len(links)}"
        links.append(endpoint_link(name, endpoint, network, facts))
        addresses.update(LinkAddress(link=name, address=a) for a in endpoint.addresses)
        if not network.ingress:
            routes.update(_other_subnets(name, endpoint, network))

    if ingress is not None:
        attach(*ingress)
    if lease is not None:
        name = f"eth{len(links)}"
        links.append(gateway_link(name, lease.v4, facts, gateway_port(task.id), task.id))
        addresses.update(LinkAddress(link=name, address=a) for a in (lease.v4, lease.v6))
        routes |= {r for r in gateway_routes(name, facts) if way_out(task, local, r.destination.version) is None}
        neighbors |= gateway_neighbors(name, facts)
        if facts.counts == "bytes":
            tables = host_mode_tables((p for p in task.ports if p.publish_mode == "host"), gateway=name)
    for endpoint in task.attachments:
        if endpoint.network_id in local:
            name = f"eth{len(links)}"
            links.append(local_link(name, endpoint, local[endpoint.network_id], facts, task.id))
            addresses.update(LinkAddress(link=name, address=a) for a in endpoint.addresses)
            routes |= _ways_out(name, endpoint, task, local)
        elif endpoint.network_id in networks and not networks[endpoint.network_id].ingress:
            attach(endpoint, networks[endpoint.network_id])
    if ingress is not None:
        endpoint, network = ingress
        ports = tuple(p for p in task.ports if p.publish_mode == "ingress")
        routes |= _reply_routes(network)
        rules |= _reply_rules(network, ports)
        neighbors |= _fake_gateways(network)
        sysctls |= _REPLY_SYSCTLS
        v4, v6 = asked_at(task, local, (lease.v4.ip, lease.v6.ip) if lease is not None else None)
        asked = (v4 or first_v4(endpoint.addresses), v6 or first_v6(endpoint.addresses))
        tables = (_table(ports, task.doors, asked), _egress(), *tables)
    tables = (*tables, NAMES, *vips.tables)
    return NamespacePlan(
        namespace=sandbox_namespace(task.id),
        mark=sandbox_mark(task.id),
        links=tuple(links),
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        rules=frozenset(rules),
        neighbors=frozenset(neighbors),
        sysctls=sysctls | dict(vips.sysctls),
        tables=tables,
        ipvs=vips.ipvs,
        sockets=vips.sockets,
    )


def _ways_out(link: str, endpoint: Attachment, task: Task, local: Locals) -> set[Route]:
    """The default routes that lead through `endpoint`."""
    ways = [way for version in (4, 6) if (way := way_out(task, local, version)) is not None]
    return {
        Route(
            destination=ANYWHERE4 if way.subnet.prefix.version == 4 else ANYWHERE6, link=link,
            gateway=way.subnet.gateway,
        )
        for way in ways
        if way.attachment == endpoint
    }  # fmt: skip


def _other_subnets(link: str, endpoint: Attachment, network: NetworkItem) -> set[Route]:
    """A network may have several subnets of one family: br0 routes between them."""
    found = set()
    for address in endpoint.addresses:
        own = next((s for s in network.subnets if s.prefix == address.network), None)
        if own is not None:
            found |= {
                Route(destination=s.prefix, link=link, gateway=own.gateway)
                for s in network.subnets
                if s.prefix.version == address.version and s.prefix != own.prefix
            }
    return found


# --- replies into the mesh -------------------------------------------------------------------------------------------

_REPLY_SYSCTLS = {
    "net/ipv4/tcp_fwmark_accept": "1",  # for IPv6 too
    "net/ipv4/fwmark_reflect": "1",
    "net/ipv6/fwmark_reflect": "1",
    # strict reverse path filtering looks where a reply with this mark would go: out of eth0, so the packet is welcome
    "net/ipv4/conf/all/src_valid_mark": "1",
}
_FREE = {"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
NOT_THE_USERS = frozenset((sandbox_sysctls().keys() | _REPLY_SYSCTLS.keys()) - _FREE)
NOT_THE_USERS_TREES = ("net/ipv4/vs/", "net/bridge/")
"""Settings that hold a sandbox together. A container may forward, if that is its task: it harms nobody else."""


def _reply_routes(network: NetworkItem) -> set[Route]:
    found = set()
    for subnet in network.subnets:
        version = subnet.prefix.version
        anywhere, gateway = (ANYWHERE4, FAKE_GATEWAY4) if version == 4 else (ANYWHERE6, FAKE_GATEWAY6)
        found.add(Route(destination=subnet.prefix, link=INGRESS_LINK, table=REPLY_TABLE))
        found.add(Route(destination=anywhere, link=INGRESS_LINK, gateway=gateway, table=REPLY_TABLE, onlink=True))
    return found


def _reply_rules(network: NetworkItem, ports: tuple[PortConfig, ...]) -> set[Rule]:
    """Replies are found by their source address: a socket's route, MTU and segment size are eth0's from the start.

    UDP and SCTP servers answer from the address of the default route; their replies are found by their mark, whose
    first bytes are those of the ingress subnet, as the MACs are made of addresses.
    """
    found = set()
    families = {s.prefix.version for s in network.subnets}
    for subnet in network.subnets:
        family = AF_INET if subnet.prefix.version == 4 else AF_INET6
        found.add(Rule(family=family, priority=BY_SOURCE, table=REPLY_TABLE, source=subnet.prefix))
        if subnet.prefix.version == 4 and any(p.protocol in _BY_GATEWAY for p in ports):
            mark = int.from_bytes(subnet.prefix.network_address.packed, sys.byteorder)
            mask = int.from_bytes(subnet.prefix.netmask.packed, sys.byteorder)
            for version in families:
                family = AF_INET if version == 4 else AF_INET6
                found.add(Rule(family=family, priority=BY_MARK, table=REPLY_TABLE, mark=mark, mask=mask))
    return found


def _fake_gateways(network: NetworkItem) -> set[Neighbor]:
    return {
        Neighbor(
            link=INGRESS_LINK,
            address=FAKE_GATEWAY4 if subnet.prefix.version == 4 else FAKE_GATEWAY6,
            mac=FAKE_GATEWAY_MAC,
        )
        for subnet in network.subnets
    }


def _egress() -> nft.Table:
    """ "Reply to the MAC it came from." """
    rule = nft.Rule(
        exprs=(
            nft.meta("mark"),
            nft.cmp(nft.host_u32(0), equal=False),
            nft.payload_set(nft.LINK_LAYER, 2, 4),
        ),
        comment="reply to the MAC it came from",
    )
    hook = nft.Hook(type="filter", hook="egress", priority=0, device=INGRESS_LINK)
    return nft.Table(family="netdev", name=TABLE, chains=(nft.Chain(name="egress", hook=hook, rules=(rule,)),))


_BY_GATEWAY = ("udp", "sctp")
"""Whose sockets do not keep the mark of who spoke to them (tcp_fwmark_accept is TCP's), nor always the address."""


_Asked = tuple[IPv4Address | None, IPv6Address | None]
"""Where servers are asked that answer from the address of the default route."""


def _table(ports: tuple[PortConfig, ...], doors: Iterable[Door], asked: _Asked) -> nft.Table:
    known = tuple(doors)
    protocols = sorted({p.protocol for p in ports})
    maps = tuple(
        nft.Map(
            name=f"{protocol}_ports",
            key=("inet_service",),
            value=("inet_service",),
            elements={
                number_inside(p, known).to_bytes(2, "big"): p.target_port.to_bytes(2, "big")
                for p in ports
                if p.protocol == protocol
            },
        )
        for protocol in protocols
    )
    chains = [
        nft.Chain(name="mark", hook=nft.Hook(type="filter", hook="prerouting", priority=-300), rules=(_mark(),)),
        nft.Chain(
            name="prerouting",
            hook=nft.Hook(type="nat", hook="prerouting", priority=-100),
            rules=_prerouting(protocols, asked),
        ),
        # Empty, but conntrack's clashes are resolved here: see the top of this module
        nft.Chain(name="input", hook=nft.Hook(type="nat", hook="input", priority=100)),
        nft.Chain(name="output", hook=nft.Hook(type="nat", hook="output", priority=-100), rules=_output()),
    ]
    replies = tuple(_reply(protocol) for protocol in protocols if protocol in _BY_GATEWAY)
    if replies:
        chains.append(nft.Chain(name="reply", hook=nft.Hook(type="route", hook="output", priority=-150), rules=replies))
    return nft.Table(family="inet", name=TABLE, chains=tuple(chains), maps=maps)


def _mark() -> nft.Rule:
    """For every packet from the mesh, before conntrack: its mark and zone from the bytes of its source MAC.

    The bytes are used in wire order. The zone is the last two: different for all nodes in subnets down to /16.
    """
    return nft.Rule(
        exprs=(
            *nft.match_iifname(INGRESS_LINK),
            nft.payload(nft.LINK_LAYER, 8, 4),
            nft.meta_set("mark"),
            nft.payload(nft.LINK_LAYER, 10, 2),
            nft.ct_set("zone", direction=nft.CT_ORIGINAL),
        ),
        comment="who sent it: mark and zone from the source MAC",
    )


_PING = tuple(nft.Rule(exprs=(*nft.match_l4proto(p), nft.verdict(nft.ACCEPT))) for p in (nft.ICMP, nft.ICMPV6))


def _prerouting(protocols: Sequence[str], asked: _Asked) -> tuple[nft.Rule, ...]:
    """Published port to target port; over ingress nothing else comes in. A nat chain sees only first packets."""
    rules = [nft.Rule(exprs=(*nft.match_iifname(INGRESS_LINK, equal=False), nft.verdict(nft.ACCEPT)))]
    for protocol in protocols:
        number = nft.PROTOCOL_NUMBERS[protocol]
        if protocol in _BY_GATEWAY:
            rules += _to_gateway(protocol, asked)
            continue
        rules.append(
            nft.Rule(
                exprs=(
                    *nft.match_l4proto(number),
                    nft.load_destination_port(),
                    nft.lookup(f"{protocol}_ports", 0, 0),
                    nft.dnat(nft.INET, None, 0),
                )
            )
        )
    refuse = nft.Rule(exprs=(nft.counter(), nft.verdict(nft.DROP)), comment="only published ports, over ingress")
    return (*rules, *_PING, refuse)


def _to_gateway(protocol: str, asked: _Asked) -> list[nft.Rule]:
    """A UDP server bound to all addresses answers from the address of the default route: so it is asked there, mostly
    on the gateway interface (without any way out: on eth0), and conntrack puts the reply right. The mark is kept in the
    connection.

    SCTP likewise: its socket offers its client all addresses it has, and only this one leads back by itself.
    """
    v4, v6 = asked
    rules = []
    for family, address, port_register in ((nft.IPV4, v4, 1), (nft.IPV6, v6, 4)):
        if address is None:
            continue
        rules.append(
            nft.Rule(
                exprs=(
                    *nft.match_nfproto(family),
                    *nft.match_l4proto(nft.PROTOCOL_NUMBERS[protocol]),
                    nft.meta("mark"),
                    nft.ct_set("mark"),
                    nft.immediate(address.packed),
                    nft.load_destination_port(port_register),
                    nft.lookup(f"{protocol}_ports", port_register, port_register),
                    nft.dnat(family, 0, port_register),
                )
            )
        )
    return rules


def _reply(protocol: str) -> nft.Rule:
    return nft.Rule(
        exprs=(
            *nft.match_l4proto(nft.PROTOCOL_NUMBERS[protocol]),
            nft.ct("direction"),
            nft.cmp(bytes([nft.CT_REPLY])),
            nft.ct("mark"),
            nft.cmp(nft.host_u32(0), equal=False),
            nft.meta_set("mark"),
        ),
        comment="a server's reply goes where the question came from",
    )


def _output() -> tuple[nft.Rule, ...]:
    """Over ingress nothing begins here: tasks do not speak with each other over it."""
    return (
        nft.Rule(exprs=(*nft.match_oifname(INGRESS_LINK, equal=False), nft.verdict(nft.ACCEPT))),
        *_PING,
        nft.Rule(exprs=(nft.counter(), nft.verdict(nft.DROP)), comment="no connections begin over ingress"),
    )
