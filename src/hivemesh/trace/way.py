"""The hops of a packet, from the plans of a node's namespaces alone. Pure.

A step names the very objects of the plan that the packet depends on there, so that what the kernel holds can be
compared one by one, and nothing else of a namespace with ten thousand peers is looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hivemesh.dataplane.balancer.nftables import VIP_TABLE
from hivemesh.dataplane.plan.host import LOCAL_TABLE
from hivemesh.dataplane.plan.names import TABLE, VXLAN, overlay_namespace
from hivemesh.kernel.api import (
    HOST,
    FdbEntry,
    Link,
    LinkAddress,
    NamespacePlan,
    Neighbor,
    Route,
    Rule,
    Veth,
    Vxlan,
)
from hivemesh.model.addr import Address
from hivemesh.wire.trace import Leg, Passage, Protocol

Plans = Mapping[str, NamespacePlan]
MAIN = 254
LO = "lo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting under /proc/sys."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableWanted:
    """A table of nftables, all of it: rules and maps. `what` says in words what it does for this packet."""

    family: str
    name: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The kernel's own choice of a way to `address`: the source it gives a socket (None: any), and the way's MTU at
    least."""

    address: Address
    source: Address | None
    mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOther:
    """Nobody told the caller's own table of neighbors another MAC for `address` by hand."""

    neighbor: Neighbor


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the sandbox's resolver says of a name: exactly these, in any order."""

    name: str
    addresses: frozenset[Address]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Somebody is at that port."""

    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The plan itself leads nowhere: `what` is wrong, `cause` says why."""

    what: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """IPVS and the maps that lead sockets to backends, all of the namespace's; nftables is a `TableWanted`."""

    what: str


Want = (
    Link | LinkAddress | Route | Rule | Neighbor | FdbEntry
    | Setting | TableWanted | Reach | NoOther | Answer | Listener | Broken | Balancing
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One hop: where, what happens there, what it takes, and where a probe shows that comes through."""

    namespace: str
    title: str
    wants: tuple[Want, ...]
    passage: Passage | None = None
    vip: Address | None = None  # that is balanced here


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the kernel has of a want; `text` is for people, `right` says whether it is as wanted."""

    want: Want
    text: str
    right: bool


def asked_name(namespace: str, name: str, addresses: frozenset[Address]) -> Step:
    """The question for a service's name, as the sandbox asks it."""
    return Step(namespace=namespace, title=f"the name {name}", wants=(Answer(name=name, addresses=addresses),))


def virtual(plans: Plans, namespace: str, vip: Address, backends: tuple[Address, ...]) -> Step:
    """A virtual address in the caller's sandbox, balanced there."""
    shown = ", ".join(map(str, backends))
    wants: list[Want] = [
        TableWanted(family=table.family, name=table.name, what=f"{vip} leads to {shown}")
        for table in plans[namespace].tables
        if table.name == VIP_TABLE
    ]
    if plans[namespace].ipvs or plans[namespace].sockets:
        wants.append(Balancing(what=f"{vip} leads to {shown}"))
    if not backends:
        wants.append(
            Broken(what="no backend takes new connections", cause="no task of the service runs and is healthy")
        )
    elif not wants:
        wants.append(Broken(what=f"nothing leads {vip} on", cause="the sandbox is not on the service's network"))
    passage = Passage(out=True)
    return Step(namespace=namespace, title=f"virtual address {vip}", wants=tuple(wants), passage=passage, vip=vip)


def arrived_back(namespace: str, vip: Address) -> Step:
    """The answer of a virtual address, at the caller."""
    passage = Passage(out=False, back=True)
    return Step(namespace=namespace, title=f"back: the answer of {vip}", wants=(), passage=passage)


def holder_of(plans: Plans, network: str, address: Address) -> str | None:
    """The sandbox here that has `address` on the overlay in the namespace `network`."""
    for plan in plans.values():
        for link in plan.links:
            plugged = isinstance(link, Veth) and link.outer.namespace == network
            if plugged and any(a.link == link.name and a.address.ip == address for a in plan.addresses):
                return plan.namespace
    return None


def out_of(plans: Plans, namespace: str, destination: Address) -> Iterator[Step]:
    """From a sandbox to `destination`: its interface, the overlay, and the tunnel if it leads to another node."""
    plan = plans[namespace]
    mine = next((a for a in plan.addresses if a.address.ip == destination), None)
    if mine is not None:  # its own service's virtual address may choose the caller itself
        yield Step(namespace=namespace, title=f"to itself by {LO}", wants=(mine,), passage=Passage(link=LO, out=True))
        return
    near = next((a for a in plan.addresses if destination in a.address.network), None)
    route = _route(plan, destination) if near is None else None
    name = near.link if near is not None else route.link if route is not None else None
    link = next((x for x in plan.links if x.name == name), None)
    if link is None:
        what = f"no network of {namespace} leads to {destination}"
        broken = Broken(what=what, cause="caller and target have no network in common")
        yield Step(namespace=namespace, title="the way out", wants=(broken,))
        return
    own = next((a for a in plan.addresses if a.link == link.name and a.address.version == destination.version), None)
    wants: list[Want] = [link]
    wants += [own] if own is not None else []
    wants += [route] if route is not None else []
    overlay = plans.get(link.outer.namespace) if isinstance(link, Veth) and link.outer.namespace else None
    there = _neighbor(overlay, destination)
    if there is not None and route is None:
        wants.append(NoOther(neighbor=Neighbor(link=link.name, address=destination, mac=there.mac)))
    if own is not None:
        wants.append(Reach(address=destination, source=own.address.ip, mtu=link.mtu))
    passage = Passage(link=link.name, out=True)
    yield Step(namespace=namespace, title=f"out through {link.name}", wants=tuple(wants), passage=passage)
    if overlay is None:
        return
    if there is not None:
        yield from _tunnel(overlay, there, destination)
    elif holder_of(plans, overlay.namespace, destination) is None:
        cause = "the task has just gone, or this node's view is behind"
        broken = Broken(what=f"nobody has {destination}", cause=cause)
        yield Step(namespace=overlay.namespace, title="overlay", wants=(*overlay.links, broken))


def _tunnel(overlay: NamespacePlan, neighbor: Neighbor, destination: Address) -> Iterator[Step]:
    entry = next((e for e in overlay.fdb if e.mac == neighbor.mac), None)
    tunnel = next(link for link in overlay.links if isinstance(link, Vxlan))
    entries: tuple[Want, ...] = (neighbor,) if entry is None else (neighbor, entry)
    where = f" at {entry.vtep}" if entry is not None else ""
    yield Step(
        namespace=overlay.namespace,
        title=f"overlay, to {neighbor.mac}{where}",
        wants=(*overlay.links, *entries),
        passage=Passage(link=VXLAN, out=True),
    )
    if entry is not None:
        # what the tunnel adds is what its sandboxes lack: the link's MTU fits the underlay with it
        overhead = 50 if tunnel.local.version == 4 else 70
        yield Step(
            namespace=HOST,
            title=f"tunnel to {entry.vtep}, UDP {tunnel.port}",
            wants=(
                TableWanted(family="inet", name=TABLE, what=f"VXLAN to {entry.vtep}"),
                Reach(address=entry.vtep, source=tunnel.local, mtu=tunnel.mtu + overhead),
            ),
            passage=Passage(tunnel=entry.vtep, out=True),
        )


def into(plans: Plans, leg: Leg) -> Iterator[Step]:
    """From the tunnel, or from a neighbor on this node, to whoever has `leg.destination`."""
    overlay = plans.get(overlay_namespace(leg.network))
    if overlay is None:
        broken = Broken(what="the network is not on this node", cause="the node's view is behind, or its task has gone")
        yield Step(namespace=HOST, title="arrival", wants=(broken,))
        return
    holder = holder_of(plans, overlay.namespace, leg.destination)
    if holder is not None and leg.source == leg.destination:
        yield _arrival(plans[holder], leg, LO)
        return
    through = Passage(out=False)
    if leg.peer != next(x.local for x in overlay.links if isinstance(x, Vxlan)):
        arrives = TableWanted(family="inet", name=TABLE, what=f"VXLAN is taken from {leg.peer}")
        passage = Passage(tunnel=leg.peer, out=False)
        yield Step(namespace=HOST, title=f"tunnel from {leg.peer}", wants=(arrives,), passage=passage)
        through = Passage(link=VXLAN, out=False)
    yield Step(namespace=overlay.namespace, title="overlay", wants=overlay.links, passage=through)
    if holder is None:
        cause = "its task has gone and others still list it, or the address was given twice"
        broken = Broken(what=f"nobody here has {leg.destination}", cause=cause)
        yield Step(namespace=overlay.namespace, title="arrival", wants=(broken,))
        return
    yield _arrival(plans[holder], leg)


def _arrival(plan: NamespacePlan, leg: Leg, by: str = "") -> Step:
    address = next(a for a in plan.addresses if a.address.ip == leg.destination)
    wants: list[Want] = [link for link in plan.links if link.name == address.link]
    wants.append(address)
    port = leg.port
    if leg.mesh:
        wants += [
            TableWanted(family=table.family, name=table.name, what="published to target port, and replies' mark")
            for table in plan.tables
            if table.name == TABLE
        ]
        wants += [*sorted(plan.rules, key=str)]
        wants += sorted((r for r in plan.routes if r.table not in (MAIN, LOCAL_TABLE)), key=str)
        wants += [n for n in sorted(plan.neighbors, key=str) if n.link == address.link]
        port = _target_port(plan, leg.protocol, port)
    wants += [Setting(key=key, value=value) for key, value in plan.sysctls.items() if key in _ARRIVING]
    if leg.protocol != "icmp" and port:
        wants.append(Listener(protocol=leg.protocol, port=port))
    passage = Passage(link=by or address.link, out=False)
    title = f"{leg.destination} on {address.link}"
    return Step(namespace=plan.namespace, title=title, wants=tuple(wants), passage=passage)


_ARRIVING = ("net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/src_valid_mark", "net/ipv4/tcp_fwmark_accept")


def _target_port(plan: NamespacePlan, protocol: str, port: int) -> int:
    for table in plan.tables:
        for found in table.maps:
            if found.name == f"{protocol}_ports":
                value = found.elements.get(port.to_bytes(2, "big"))
                if isinstance(value, bytes):
                    return int.from_bytes(value[:2], "big")
    return port


def _route(plan: NamespacePlan, destination: Address) -> Route | None:
    found = [
        r
        for r in plan.routes
        if r.table == MAIN and not r.local and r.destination.version == destination.version
        and destination in r.destination
    ]  # fmt: skip
    return max(found, key=lambda r: r.destination.prefixlen, default=None)


def _neighbor(overlay: NamespacePlan | None, address: Address) -> Neighbor | None:
    if overlay is None:
        return None
    return next((n for n in overlay.neighbors if n.link == VXLAN and n.address == address), None)
