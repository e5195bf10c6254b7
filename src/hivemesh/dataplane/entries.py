"""What hangs on links (addresses, routes, rules, neighbors, forwarding entries): read as values, set by messages."""

import errno
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hivemesh.dataplane.ownership import is_our_address, is_our_rule
from hivemesh.kernel.api import HOST, FdbEntry, LinkAddress, NamespacePlan, Neighbor, Route, Rule, Vxlan
from hivemesh.kernel.rtnl import Rtnl
from hivemesh.reconcile.delta import Delta
from hivemesh.wire import rtnetlink as wire
from hivemesh.wire.netlink import Message

T = TypeVar("T", bound=Hashable)
Indices = dict[str, int]
"""Link name to index, in the plan's namespace."""


@dataclass(slots=True)
class Reading(Generic[T]):
    """What the kernel holds of ours: values, and the removal of what no value of ours could describe."""

    values: set[T] = field(default_factory=set)
    odd: list[Message] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """One kind of object: where it stands in a plan, how it is read, and the messages that change it."""

    name: str
    wanted: Callable[[NamespacePlan], frozenset[T]]
    key: Callable[[T], Hashable]
    read: Callable[[Rtnl, NamespacePlan, Indices], Reading[T]]
    put: Callable[[NamespacePlan, Indices, T], Message]
    remove: Callable[[Indices, T], Message]
    after: Callable[[Indices, T], Message] | None = None  # sent behind a removal: what the kernel made of the value
    on_links: bool = True  # gone or doubtful when a link was made anew

    def delta(self, namespace: str) -> Delta[T]:
        """In the host nothing is replaced, it could be somebody else's: ours is removed first."""
        return Delta(self.key if namespace != HOST else lambda value: value)


def _read_addresses(door: Rtnl, plan: NamespacePlan, indices: Indices) -> Reading[LinkAddress]:
    names = {index: name for name, index in indices.items()}
    reading: Reading[LinkAddress] = Reading()
    for seen in door.addresses():
        name = names.get(seen.index)
        if name is None:
            continue
        value = LinkAddress(link=name, address=seen.address)
        if is_our_address(plan, seen, name) or value in plan.addresses:
            reading.values.add(value)
    return reading


def _read_routes(door: Rtnl, plan: NamespacePlan, indices: Indices) -> Reading[Route]:
    names = {index: name for name, index in indices.items()}
    reading: Reading[Route] = Reading()
    for seen in door.routes():
        name = names.get(seen.index)
        if name is None or seen.kind not in (wire.RTN_UNICAST, wire.RTN_LOCAL):
            reading.odd.append(wire.delete_route(seen.destination, seen.index, seen.gateway, seen.table, seen.kind))
            continue
        reading.values.add(
            Route(
                destination=seen.destination,
                link=name,
                gateway=seen.gateway,
                table=seen.table,
                onlink=seen.onlink,
                local=seen.kind == wire.RTN_LOCAL,
            )
        )
    return reading


def _read_rules(door: Rtnl, plan: NamespacePlan, indices: Indices) -> Reading[Rule]:
    reading: Reading[Rule] = Reading()
    for seen in door.rules():
        if not is_our_rule(plan.namespace, seen):
            continue
        if not seen.plain:
            reading.odd.append(wire.delete_odd_rule(seen))
            continue
        reading.values.add(
            Rule(
                family=seen.family, priority=seen.priority, table=seen.table, source=seen.source, mark=seen.mark,
                mask=seen.mask,
            )
        )  # fmt: skip
    return reading


def _read_neighbors(door: Rtnl, plan: NamespacePlan, indices: Indices) -> Reading[Neighbor]:
    reading: Reading[Neighbor] = Reading()
    for link in plan.links:
        if link.name in indices:
            for seen in door.neighbors(indices[link.name]):
                reading.values.add(Neighbor(link=link.name, address=seen.address, mac=seen.mac))
    return reading


def _read_fdb(door: Rtnl, plan: NamespacePlan, indices: Indices) -> Reading[FdbEntry]:
    reading: Reading[FdbEntry] = Reading()
    wanted = {(entry.link, entry.mac) for entry in plan.fdb}
    for link in plan.links:
        if not isinstance(link, Vxlan) or link.name not in indices:
            continue
        for seen in door.fdb(indices[link.name]):
            if seen.plain and seen.vtep is not None:
                reading.values.add(FdbEntry(link=link.name, mac=seen.mac, vtep=seen.vtep))
            elif (link.name, seen.mac) not in wanted:  # else setting it puts it right
                reading.odd.append(wire.delete_fdb(seen.index, seen.mac, seen.vtep))
    return reading


def _put_route(plan: NamespacePlan, indices: Indices, value: Route) -> Message:
    return wire.set_route(
        value.destination,
        indices[value.link],
        value.gateway,
        value.table,
        onlink=value.onlink,
        local=value.local,
        replace=plan.namespace != HOST,
    )


ADDRESS: Kind[LinkAddress] = Kind(
    name="address",
    wanted=lambda plan: plan.addresses,
    key=lambda value: value,
    read=_read_addresses,
    put=lambda plan, indices, value: wire.set_address(indices[value.link], value.address, value.link),
    remove=lambda indices, value: wire.delete_address(indices[value.link], value.address, value.link),
)
NEIGHBOR: Kind[Neighbor] = Kind(
    name="neighbor",
    wanted=lambda plan: plan.neighbors,
    key=lambda value: (value.link, value.address),
    read=_read_neighbors,
    put=lambda plan, indices, value: wire.set_neighbor(indices[value.link], value.address, value.mac),
    remove=lambda indices, value: wire.delete_neighbor(indices[value.link], value.address),
)
FDB: Kind[FdbEntry] = Kind(
    name="fdb",
    wanted=lambda plan: plan.fdb,
    key=lambda value: (value.link, value.mac),
    read=_read_fdb,
    put=lambda plan, indices, value: wire.set_fdb(indices[value.link], value.mac, value.vtep),
    remove=lambda indices, value: wire.delete_fdb(indices[value.link], value.mac, value.vtep),
    # br0 learns which port a MAC is behind, for 300 s: long enough to mislead an address that moves to this node
    after=lambda indices, value: wire.delete_learned(indices[value.link], value.mac),
)
ROUTE: Kind[Route] = Kind(
    name="route",
    wanted=lambda plan: plan.routes,
    key=lambda value: (value.destination, value.table),
    read=_read_routes,
    put=_put_route,
    remove=lambda indices, value: wire.delete_route(
        value.destination,
        indices[value.link],
        value.gateway,
        value.table,
        wire.RTN_LOCAL if value.local else wire.RTN_UNICAST,
    ),
)
RULE: Kind[Rule] = Kind(
    name="rule",
    wanted=lambda plan: plan.rules,
    key=lambda value: value,
    read=_read_rules,
    put=lambda plan, indices, value: wire.set_rule(
        value.family, value.priority, value.table, value.source, value.mark, value.mask
    ),
    remove=lambda indices, value: wire.delete_rule(
        value.family, value.priority, value.table, value.source, value.mark, value.mask
    ),
    on_links=False,
)

KINDS: tuple[Kind[Any], ...] = (ADDRESS, NEIGHBOR, FDB, ROUTE, RULE)
"""In the order in which the kernel accepts them: a route's gateway needs an address."""

GONE = {errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV}
"""What a removal says when there is nothing to remove."""
