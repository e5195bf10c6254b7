"""What of this node's networks is not as it should be, for the doctor, in the words of traces: both share one judge.

All of it blocks, and only reads.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.differing import Difference, Subject
from hivemesh.dataplane.plan.names import sandbox_namespace
from hivemesh.kernel import listening, strangers
from hivemesh.kernel.api import HOST, FdbEntry, NamespacePlan, Neighbor, Route
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.rtnl import Rtnl
from hivemesh.kernel.sockets import NETNS_DIR
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError
from hivemesh.model.task import TaskState
from hivemesh.trace.judge import cause, command, named, planned
from hivemesh.trace.kernel import look
from hivemesh.trace.way import Broken, Listener, NoOther, Reach, Setting, Step, TableWanted, Want
from hivemesh.wire.doctor import Place, Unlike
from hivemesh.wire.nft import Table

Plans = Mapping[str, NamespacePlan]
MOST = 20
"""Differences that are told, and servers, and rules."""
STARTED = 15.0
"""Seconds a container has until its server must listen."""
MOST_SANDBOXES = 200


# --- drift ------------------------------------------------------------------------------------------------------------


def unlike(linux: Linux, plans: Plans, differences: Sequence[Difference]) -> dict[Difference, Unlike]:
    """What differences mean, the first of them; what stands in another one's place is part of that one's."""
    instead = {(d.namespace, _place(d.subject)) for d in differences if d.subject is not None and not d.extra}
    found: dict[Difference, Unlike] = {}
    told: set[Unlike] = set()
    for difference in differences:
        if difference.extra and (difference.namespace, _place(difference.subject)) in instead:
            continue
        means = _unlike(linux, plans, difference)
        if means not in told and len(told) < MOST:
            told.add(means)
            found[difference] = means
    return found


def _place(subject: Subject | None) -> object:
    match subject:
        case Neighbor():
            return subject.link, subject.address
        case FdbEntry():
            return subject.link, subject.mac
        case Route():
            return subject.destination, subject.table
        case Table():
            return subject.family, subject.name
    return subject


def _unlike(linux: Linux, plans: Plans, difference: Difference) -> Unlike:
    where, subject = difference.namespace, difference.subject
    plan = plans.get(where)
    want = _want(plan, subject) if plan is not None and subject is not None else None
    if isinstance(subject, Neighbor) and difference.extra:
        want, text = NoOther(neighbor=subject), str(subject.mac)
    elif plan is None or want is None or difference.extra:
        said = "somebody put it there" if difference.extra else ""
        broken = Broken(what=difference.text, cause=said)
        return Unlike(namespace=where, text=difference.text, cause=cause(where, broken, difference.text))
    else:
        seen = look(linux, plans, Step(namespace=where, title="", wants=(want,)))[0]
        if seen.right:  # put right since, or of another kind than is looked at
            why = cause(where, want, "missing")
            return Unlike(namespace=where, text=difference.text, cause=why, proof=command(where, want))
        text = seen.text
    words = f"{named(want)}: {text}"
    if not isinstance(want, TableWanted | NoOther):
        words += f" (planned: {planned(want)})"
    return Unlike(namespace=where, text=words, cause=cause(where, want, text), proof=command(where, want))


def _want(plan: NamespacePlan, subject: Subject) -> Want:
    match subject:
        case str():
            return Setting(key=subject, value=plan.sysctls[subject])
        case Table():
            return TableWanted(family=subject.family, name=subject.name, what="as planned")
        case _:
            return subject


# --- the underlay -----------------------------------------------------------------------------------------------------


def astray(door: Rtnl, places: Iterable[Place], own: Address) -> dict[str, Unlike]:
    """The nodes to which the kernel would not send by the link that has this node's data path address. `door` is the
    machine's own namespace."""
    home = {seen.index for seen in door.addresses() if seen.address.ip == own}
    names = {link.index: link.name for link in door.links().values()}
    found: dict[str, Unlike] = {}
    for place in places:
        if place.vtep.version != own.version or place.vtep == own:
            continue
        with contextlib.suppress(OSError):  # the probes' senders hear it, too
            taken = door.way_to(place.vtep)
            if taken not in home:
                want = Reach(address=place.vtep, source=own)
                text = f"by {names.get(taken, 'several links')}, so by another way"
                found[place.id] = Unlike(
                    text=f"{named(want)}: {text}", cause=cause(HOST, want, text), proof=command(HOST, want)
                )
    return found


# --- tasks ------------------------------------------------------------------------------------------------------------


def silent(plans: Plans, parts: ViewParts | None, now: float) -> tuple[Unlike, ...]:
    """Ports that services publish, and where a container that has run for a while does not listen."""
    return tuple(islice(_silent(plans, parts, now), MOST))


def _silent(plans: Plans, parts: ViewParts | None, now: float) -> Iterator[Unlike]:
    items = parts.tasks.items() if parts is not None else ()
    for identifier, item in islice(items, MOST_SANDBOXES):
        task, namespace = item.task, sandbox_namespace(identifier)
        runs = task.status.state == task.desired == TaskState.RUNNING and now - task.status.timestamp > STARTED
        if not runs or namespace not in plans or not task.ports:
            continue
        try:
            doors = listening.doors_in(f"{NETNS_DIR}/{namespace}")
        except OSError:  # it has just gone
            continue
        for port in task.ports:
            if port.protocol != "sctp" and (port.protocol, port.target_port) not in doors:
                want = Listener(protocol=port.protocol, port=port.target_port)
                yield Unlike(
                    namespace=namespace,
                    text=f"{task.name}: nobody listens on port {port.target_port}/{port.protocol}, which is published",
                    cause=cause(namespace, want, "nobody listens"),
                    proof=command(namespace, want),
                )


def foreign_rules(plans: Plans) -> tuple[Unlike, ...]:
    """Firewalls of others inside our namespaces that drop something."""
    found: list[Unlike] = []
    for namespace in plans:
        if namespace == HOST or len(found) >= MOST:
            continue
        with contextlib.suppress(OSError, HivemeshError):  # it has gone, or `nft` is not here to say
            found += [
                Unlike(
                    namespace=namespace,
                    text=f"{where} drops or rejects packets",
                    cause="somebody, or a container with NET_ADMIN, has put a firewall into it",
                    proof=f"ip netns exec {namespace} nft list ruleset",
                )
                for where in strangers.stopping(namespace)
            ]
    return tuple(found)
