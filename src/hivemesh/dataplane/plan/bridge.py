"""Networks of this node alone: a bridge each in the host, ports of plain containers, and who may speak with whom.

    client -> node:port -> dnat -> container        (published; the bridge's own clients appear as the bridge)
    container -> anywhere                           (as the node, if the network masquerades)
    container <-> container of the same bridge      (bridged; never seen by these rules; without ICC ports are isolated)
    anything else -> container                      (dropped)

The rules are a skeleton; bridges and ports are elements of sets and maps. Only masquerading has rules per subnet.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_interface

from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.host import LOCAL_TABLE, LOOPBACK6, forwarding_settings
from hivemesh.dataplane.plan.names import GATEWAY_BRIDGE, local_port
from hivemesh.kernel.api import HOST, Bridge, Dummy, Link, LinkAddress, Macvlan, NamespacePlan, Route, Veth, VethEnd
from hivemesh.model.addr import Address, first_v4, first_v6, mac_from, mac_of
from hivemesh.model.ids import NetworkID
from hivemesh.model.local import LocalNetwork
from hivemesh.model.network import Subnet
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.nft import (
    ACCEPT,
    CT_STATE_ESTABLISHED,
    CT_STATE_RELATED,
    CT_STATUS_DNAT,
    DROP,
    GOTO,
    IPV4,
    IPV6,
    Chain,
    Expr,
    Hook,
    Map,
    Rule,
    Table,
    dnat,
    ifname,
    immediate,
    load_destination,
    load_protocol_port,
    lookup,
    masquerade,
    match_ct_state,
    match_ct_status,
    match_local_destination,
    match_nfproto,
    match_oifname,
    match_source,
    meta,
    protocol_port,
    snat,
    verdict,
)

LOCAL_RULES = "hivemesh-local"
LOCAL_MARK = "hivemesh/local/"
"""Begins the alias of every bridge of ours but the gateway's."""
LOOPBACK4 = IPv4Network("127.0.0.0/8")
_PORT = ("inet_proto", "inet_service")
_NAT_BEFORE_OTHERS = 11
"""One before the chains of published ports of services, for an order that is always the same; the two never share a
port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    """`port` of the node, at `address` only if there is one, leads to `target` at the container's addresses."""

    protocol: str
    port: int
    target: int
    v4: IPv4Address | None
    v6: IPv6Address | None
    address: Address | None = None


Locals = Mapping[NetworkID, LocalNetwork]
NO_LOCALS: Locals = {}


def alias_of(network: LocalNetwork) -> str:
    return f"{LOCAL_MARK}{network.id}"


# --- the way out of a sandbox -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """Through which of its networks of this node a sandbox leaves: the first of the highest priority that leads out."""

    attachment: Attachment
    network: LocalNetwork
    subnet: Subnet


def way_out(task: Task, local: Locals, version: int, *, bridges: bool = False) -> WayOut | None:
    """Of one family; with `bridges` only through a bridge, where ports can be published."""
    found = None
    for attachment in task.attachments:
        network = local.get(attachment.network_id)
        subnet = network.subnet(version) if network is not None else None
        if network is None or subnet is None or network.internal or (bridges and not network.is_bridge):
            continue
        if not network.is_bridge and network.own_parent:
            continue
        if found is None or attachment.priority > found.attachment.priority:
            found = WayOut(attachment=attachment, network=network, subnet=subnet)
    return found


def asked_at(
    task: Task, local: Locals, lease: tuple[IPv4Address, IPv6Address] | None, *, bridges: bool = False
) -> tuple[IPv4Address | None, IPv6Address | None]:
    """Its addresses on its ways out, from which its servers answer; `lease`: those on the gateway bridge."""
    four, six = (way_out(task, local, version, bridges=bridges) for version in (4, 6))
    v4 = first_v4(four.attachment.addresses) if four else lease[0] if lease else None
    v6 = first_v6(six.attachment.addresses) if six else lease[1] if lease else None
    return v4, v6


def ports_of(task: Task, local: Locals, lease: tuple[IPv4Address, IPv6Address] | None) -> tuple[ContainerPort, ...]:
    """What `task` publishes here. `lease`: its addresses on the gateway bridge, for what no bridge of this node has."""
    v4, v6 = asked_at(task, local, lease, bridges=True)
    four = way_out(task, local, 4, bridges=True)
    binding = four.network.binding if four else None
    return tuple(
        ContainerPort(
            protocol=port.protocol,
            port=port.port,
            target=port.target,
            v4=v4,
            v6=None if binding is not None and port.address is None else v6,
            address=port.address or binding,
        )
        for port in task.local.ports
    )


# --- links ------------------------------------------------------------------------------------------------------------


def local_link(name: str, endpoint: Attachment, network: LocalNetwork, facts: HostFacts, owner: str) -> Veth | Macvlan:
    """A sandbox's interface on a network of this node."""
    if not network.is_bridge:
        mtu = network.mtu
        return Macvlan(name=name, mac=endpoint.mac, mtu=mtu, parent=network.device, mode=network.mode)
    end = VethEnd(
        namespace=HOST,
        name=local_port(endpoint.endpoint_id),
        master=network.device,
        isolated=not network.icc,
        alias=f"hivemesh/sandbox/{owner}",
    )
    return Veth(name=name, mac=endpoint.mac, mtu=network.mtu or facts.vtep_mtu, outer=end)


def _host_link(network: LocalNetwork, facts: HostFacts) -> Link | None:
    mtu = network.mtu or facts.vtep_mtu
    if network.is_bridge:
        four = network.subnet(4)
        mac = mac_of(four.gateway) if four and isinstance(four.gateway, IPv4Address) else mac_from(network.id)
        return Bridge(name=network.device, mtu=mtu, mac=mac, alias=alias_of(network))
    return Dummy(name=network.device, mtu=mtu, alias=alias_of(network)) if network.own_parent else None


# --- the host ---------------------------------------------------------------------------------------------------------


PLAIN_HOST = NamespacePlan(namespace=HOST, mark="")
"""What a host in no swarm holds for the swarm."""


def with_local(
    plan: NamespacePlan, facts: HostFacts, networks: Collection[LocalNetwork], ports: Sequence[ContainerPort]
) -> NamespacePlan:
    """The host's plan with networks of this node and what plain containers publish; `plan` itself without any.

    Outside a swarm `plan` is `PLAIN_HOST`.
    """
    if not networks and not ports:
        return plan
    bridges = [network for network in networks if network.is_bridge]
    links = [link for network in networks if (link := _host_link(network, facts)) is not None]
    addresses = {
        LinkAddress(link=bridge.device, address=ip_interface(f"{subnet.gateway}/{subnet.prefix.prefixlen}"))
        for bridge in bridges
        for subnet in bridge.subnets
    }
    routes = {
        # replies to ::1 come in from the bridge: see `host.py`
        Route(destination=LOOPBACK6, link=bridge.device, table=LOCAL_TABLE, local=True)
        for bridge in bridges
        if bridge.subnet(6) is not None
    }
    sysctls = forwarding_settings(facts)
    for bridge in bridges:
        sysctls |= {
            f"net/ipv4/conf/{bridge.device}/route_localnet": "1",  # replies to 127.0.0.1 come in from the bridge
            f"net/ipv4/conf/{bridge.device}/send_redirects": "0",
            f"net/ipv6/conf/{bridge.device}/accept_dad": "0",
        }
    return replace(
        plan,
        links=(*plan.links, *links),
        addresses=plan.addresses | addresses,
        routes=plan.routes | routes,
        sysctls={**sysctls, **plan.sysctls},
        tables=(*plan.tables, _table(facts, bridges, ports)),
    )


def _table(facts: HostFacts, bridges: Sequence[LocalNetwork], ports: Sequence[ContainerPort]) -> Table:
    return Table(
        family="inet",
        name=LOCAL_RULES,
        maps=(*_port_maps(ports), _names("bridges", bridges), _names("internal", [b for b in bridges if b.internal])),
        chains=(
            Chain(name="ports", rules=_to_containers()),
            *(
                Chain(
                    name=hook,
                    hook=Hook(type="nat", hook=hook, priority=-100 - _NAT_BEFORE_OTHERS),
                    rules=(Rule(exprs=(*match_local_destination(), verdict(GOTO, "ports"))),),
                )
                for hook in ("prerouting", "output")
            ),
            Chain(
                name="loopback",
                hook=Hook(type="filter", hook="prerouting", priority=-300),
                rules=(
                    Rule(
                        exprs=(
                            meta("iifname"),
                            lookup("bridges"),
                            *match_nfproto(IPV4),
                            load_destination(4),
                            *_within(LOOPBACK4),
                            verdict(DROP),
                        ),
                        comment="the node's own loopback is not for containers",
                    ),
                ),
            ),
            Chain(name="to_containers", rules=_forwarded_in()),
            Chain(
                name="forward",
                hook=Hook(type="filter", hook="forward", priority=0),
                rules=(
                    Rule(exprs=(meta("oifname"), lookup("bridges"), verdict(GOTO, "to_containers"))),
                    Rule(exprs=(meta("iifname"), lookup("internal"), verdict(DROP)), comment="internal networks"),
                ),
            ),
            Chain(
                name="postrouting",
                hook=Hook(type="nat", hook="postrouting", priority=100 - _NAT_BEFORE_OTHERS),
                rules=tuple(rule for bridge in bridges for rule in _leaving(bridge, facts)),
            ),
        ),
    )


def _within(prefix: IPv4Network) -> tuple[Expr, ...]:
    """Of an address that is loaded already."""
    return match_source(prefix)[3:]


def _names(name: str, bridges: Iterable[LocalNetwork]) -> Map:
    return Map(name=name, key=("ifname",), elements={ifname(bridge.device): None for bridge in bridges})


def _port_maps(ports: Iterable[ContainerPort]) -> Iterable[Map]:
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        everywhere: dict[bytes, bytes] = {}
        bound: dict[bytes, bytes] = {}
        for port in ports:
            to = port.v4 if version == 4 else port.v6
            if to is None or (port.address is not None and port.address.version != version):
                continue
            value = to.packed + port.target.to_bytes(2, "big") + b"\0\0"
            key = protocol_port(port.protocol, port.port)
            if port.address is None or port.address.is_unspecified:
                everywhere[key] = value
            else:
                bound[port.address.packed + key] = value
        yield Map(name=f"bound{version}", key=(kind, *_PORT), value=(kind, "inet_service"), elements=bound)
        yield Map(name=f"ports{version}", key=_PORT, value=(kind, "inet_service"), elements=everywhere)


def _to_containers() -> tuple[Rule, ...]:
    """A port published on one address wins over the same number on all."""
    rules = []
    for version, family, width in ((4, IPV4, 1), (6, IPV6, 4)):
        for name, before in ((f"bound{version}", (load_destination(version),)), (f"ports{version}", ())):
            key = width if before else 0
            rules.append(
                Rule(
                    exprs=(
                        *match_nfproto(family),
                        *before,
                        *load_protocol_port(key),
                        lookup(name, 0, 0),
                        dnat(family, 0, width),
                    )
                )
            )
    return tuple(rules)


def _forwarded_in() -> tuple[Rule, ...]:
    return (
        Rule(exprs=(*match_ct_state(CT_STATE_ESTABLISHED | CT_STATE_RELATED), verdict(ACCEPT))),
        Rule(exprs=(meta("iifname"), lookup("internal"), verdict(DROP)), comment="internal networks"),
        Rule(exprs=(*match_ct_status(CT_STATUS_DNAT), verdict(ACCEPT))),
        Rule(exprs=(verdict(DROP),), comment="containers are reached by published ports only"),
    )


def _leaving(bridge: LocalNetwork, facts: HostFacts) -> Iterable[Rule]:
    """nat chains see the first packet of a connection only."""
    device = bridge.device
    for subnet in bridge.subnets:
        own, loopback = subnet.prefix, LOOPBACK4 if subnet.prefix.version == 4 else LOOPBACK6
        for prefix, comment in (
            (own, "a container that asks its own bridge's published port"),
            (loopback, "the node's own loopback asks"),
        ):
            yield Rule(
                exprs=(
                    *match_oifname(device),
                    *match_ct_status(CT_STATUS_DNAT),
                    *match_source(prefix),
                    masquerade(),
                ),
                comment=comment,
            )
        if bridge.internal:
            continue
        node = facts.node_v4 if own.version == 4 else facts.node_v6
        if facts.in_swarm and node is not None:
            family = IPV4 if own.version == 4 else IPV6
            yield Rule(
                exprs=(
                    *match_oifname(GATEWAY_BRIDGE),
                    *match_source(own),
                    immediate(node.packed),
                    snat(family, 0),
                ),
                comment="to services as the node",
            )
        if bridge.masquerade:
            yield Rule(
                exprs=(*match_oifname(device, equal=False), *match_source(own), masquerade()),
                comment="containers go out as the node",
            )
