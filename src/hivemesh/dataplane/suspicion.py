"""Which of the kernel's events contradict a plan: pure, so that a busy machine costs little and an echo nothing."""

from hivemesh.dataplane.entries import ADDRESS, FDB, NEIGHBOR, ROUTE, RULE, Indices
from hivemesh.dataplane.ownership import is_our_address, is_our_rule
from hivemesh.kernel.api import HOST, FdbEntry, LinkAddress, NamespacePlan, Neighbor, Route, Rule
from hivemesh.kernel.monitor import LOST, NAMESPACE, NFT, Change
from hivemesh.model.addr import Address
from hivemesh.wire.rtnetlink import (
    ROUTE_PROTOCOL,
    RTN_LOCAL,
    AddressSeen,
    FdbSeen,
    LinkSeen,
    NeighborSeen,
    RouteSeen,
    RuleSeen,
)

LINK, SYSCTL, IPVS, SOCKETS = "link", "sysctl", "ipvs", "sockets"
EVERYTHING = frozenset(
    {LINK, SYSCTL, NFT, IPVS, SOCKETS, *(kind.name for kind in (ADDRESS, NEIGHBOR, FDB, ROUTE, RULE))}
)
"""The names of what can be doubted."""
_LOST_WITH_LINK = frozenset({LINK, SYSCTL, NFT, ADDRESS.name, NEIGHBOR.name, ROUTE.name})
"""What goes when a link goes down; a VXLAN device keeps its permanent entries."""
_NOBODYS = (2, 9)  # RTPROT_KERNEL, RTPROT_RA


class WantedKeys:
    """The keys of a plan's neighbors, gathered once for many events."""

    def __init__(self) -> None:
        self._by_plan: dict[int, frozenset[tuple[str, Address]]] = {}

    def neighbors(self, plan: NamespacePlan) -> frozenset[tuple[str, Address]]:
        found = self._by_plan.get(id(plan))
        if found is None:
            found = self._by_plan[id(plan)] = frozenset((n.link, n.address) for n in plan.neighbors)
        return found


def _name(indices: Indices, index: int) -> str:
    return next((name for name, known in indices.items() if known == index), "")


def stranger(plan: NamespacePlan, indices: Indices, change: Change) -> bool:
    """Whether it is about the machine's own links and addresses, which are not ours but facts we rely on."""
    if plan.namespace != HOST:
        return False
    ours = {link.name for link in plan.links}
    if isinstance(change.value, AddressSeen):
        # bridge ports of containers have link-local addresses
        return change.value.permanent and not change.value.link_local and _name(indices, change.value.index) not in ours
    if isinstance(change.value, LinkSeen) and change.kind == LINK:
        # links of containers come and go; what matters is what the machine itself is connected with
        return change.value.name not in ours and change.value.kind != "veth"
    return False


def contradicts(plan: NamespacePlan, indices: Indices, change: Change, keys: WantedKeys) -> frozenset[str] | None:
    """What is in doubt after `change`; None: nothing is, not even the namespace. Links are judged by how they are now,
    see `Applier.contradicted`; here only by what is lost when one goes down."""
    value = change.value
    if change.kind == NAMESPACE:
        return frozenset()
    if change.kind == LOST:
        return EVERYTHING
    if change.kind == NFT:
        return frozenset({NFT})
    present = not change.removed
    wrong, kind = False, ""
    if isinstance(value, LinkSeen):
        near = change.kind == LINK and any(link.name == value.name for link in plan.links)
        return _LOST_WITH_LINK if near and present and not value.up else None
    if isinstance(value, AddressSeen):
        kind, link = ADDRESS.name, _name(indices, value.index)
        address = LinkAddress(link=link, address=value.address)
        wanted = address in plan.addresses
        wrong = wanted != present and (wanted or is_our_address(plan, value, link))
    elif isinstance(value, RouteSeen):
        kind = ROUTE.name
        if value.protocol == ROUTE_PROTOCOL:
            route = Route(
                destination=value.destination,
                link=_name(indices, value.index),
                gateway=value.gateway,
                table=value.table,
                onlink=value.onlink,
                local=value.kind == RTN_LOCAL,
            )
            wrong = (route in plan.routes) != present
        else:
            # a stranger's route may have taken the place of ours
            wrong = present and plan.namespace != HOST and value.protocol not in _NOBODYS
    elif isinstance(value, RuleSeen):
        kind = RULE.name
        rule = Rule(
            family=value.family, priority=value.priority, table=value.table, source=value.source, mark=value.mark,
            mask=value.mask,
        )  # fmt: skip
        wrong = is_our_rule(plan.namespace, value) and (value.plain and rule in plan.rules) != present
    elif isinstance(value, NeighborSeen):
        kind, link = NEIGHBOR.name, _name(indices, value.index)
        if present and value.permanent:
            known = any(link == wanted.name for wanted in plan.links)
            wrong = known and Neighbor(link=link, address=value.address, mac=value.mac) not in plan.neighbors
        else:
            wrong = (link, value.address) in keys.neighbors(plan)
    elif isinstance(value, FdbSeen):
        kind = FDB.name
        link = _name(indices, value.index)
        entry = FdbEntry(link=link, mac=value.mac, vtep=value.vtep) if value.plain and value.vtep else None
        if any(link == wanted.name for wanted in plan.links):
            wrong = (entry in plan.fdb) != present
    return frozenset({kind}) if wrong else None
