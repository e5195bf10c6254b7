"""Answers questions about ways: this node's part by its own kernel, the other end's part by its node."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.plan.names import overlay_namespace
from hivemesh.kernel import machine
from hivemesh.kernel.api import HOST, FdbEntry, Vxlan
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.probing import new_watch
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.trace.judge import hop_of
from hivemesh.trace.kernel import look
from hivemesh.trace.outside import Hosted, answered, asks
from hivemesh.trace.probes import AGAIN, ELSEWHERE, MOST_WAYS, Aim, Salvo, Shots
from hivemesh.trace.question import Found, Path, find
from hivemesh.trace.watching import Watching
from hivemesh.trace.way import Plans, Reach, Step, holder_of, into, out_of
from hivemesh.trace.witness import with_probes
from hivemesh.wire.trace import Examination, Examined, Hop, Leg, Order, Question, Sighting, Trace, Watch, Way

log = logging.getLogger("hivemesh.trace")

BACK = "back: "
VXLAN_PORT = 4789
"""Where there is no tunnel at all, and so none to ask."""
Elsewhere = Callable[[Address, Examination], Awaitable[Examined]]
"""Ask the node with that VTEP. Raises a `HivemeshError` that says why it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The node that looks: its name, its kernel, what it holds, where it looks out for probes."""

    node: str
    linux: Linux
    plans: Plans
    watching: Watching


def examine(here: Here, examination: Examination) -> Examined:
    """This node's part of another's trace. Blocks. Raises `Unavailable` or `OSError` when it cannot send."""
    watch = examination.watch
    if watch is not None and examination.order is not None:
        return _send(here, watch, examination.order)
    leg = examination.leg
    if leg is None or examination.part == "tell":
        if watch is None:
            return Examined()
        try:
            return Examined(sightings=tuple(here.watching.seen(watch)))
        finally:
            here.watching.done(watch)
    steps, back = _ending(here.plans, leg)
    hops = _hops(here, steps) + _hops(here, back, BACK)
    if watch is not None:
        try:
            here.watching.look_out(watch, (HOST, *(step.namespace for step in (*steps, *back))))
        except (OSError, Unavailable) as error:
            log.warning("looking out for a trace's probes: %s", error)
            hops = tuple(msgspec.structs.replace(hop, passage=None) for hop in hops)  # nobody sees anything there
    return Examined(hops=hops)


def _send(here: Here, watch: Watch, order: Order) -> Examined:
    """As somebody outside: from this machine's own namespace."""
    aim = Aim(
        namespace=HOST, destination=order.destination, port=order.port, protocol=order.protocol, count=order.count
    )
    here.watching.look_out(watch, (HOST,))
    salvo = Salvo(watch, [aim], lambda: here.watching.seen(watch), order.first)
    salvo.fire()
    hops = _hops(here, (asks(order.destination, order.port),)) + _hops(here, (answered(),))
    failed = {number: why for shots in salvo.shots for number, why in shots.failed.items()}
    return Examined(hops=hops, sightings=tuple(salvo.sightings), failed=failed)


def _ending(plans: Plans, leg: Leg) -> tuple[list[Step], list[Step]]:
    holder = holder_of(plans, overlay_namespace(leg.network), leg.destination)
    return list(into(plans, leg)), [] if holder is None else list(out_of(plans, holder, leg.source))


def _hops(here: Here, steps: Iterable[Step], prefix: str = "") -> tuple[Hop, ...]:
    found = []
    for step in steps:
        hop = hop_of(here.node, step, look(here.linux, here.plans, step))
        passage = hop.passage
        if prefix and passage is not None:
            passage = msgspec.structs.replace(passage, back=True)
        found.append(msgspec.structs.replace(hop, title=prefix + hop.title, passage=passage))
    return tuple(found)


async def trace(here: Here, parts: ViewParts, question: Question, vtep: Address, elsewhere: Elsewhere) -> Trace:
    """All ways of a question. Raises `NotFound` or `Invalid` when the question leads nowhere at all."""
    own = {found.address.ip for found in await asyncio.to_thread(machine.addresses)}
    found = find(parts, here.plans, question, vtep, own)
    watch = (
        new_watch(question.protocol, _tunnel_port(here.plans))
        if question.probe and (found.paths or found.hosted)
        else None
    )
    notes: tuple[str, ...] = ()
    if watch is not None:
        try:
            await asyncio.to_thread(here.watching.look_out, watch, _places(here.plans, found))
        except (OSError, Unavailable) as error:
            watch, notes = None, (f"no probes were sent: {error}",)
    try:
        begin = await asyncio.to_thread(_hops, here, found.begin)
        watches = [watch] * MOST_WAYS + [None] * len(found.paths)
        ways = await asyncio.gather(
            *(_way(here, path, elsewhere, each) for path, each in zip(found.paths, watches, strict=False))
        )
        if watch is not None and len(ways) > MOST_WAYS:
            notes = (f"{MOST_WAYS} of the {len(ways)} ways were probed one by one",)
        ways += [await asyncio.to_thread(_hosted, here, alone) for alone in found.hosted]
        end = await asyncio.to_thread(_hops, here, found.end)
        told = Trace(
            source=found.source,
            target=found.target,
            protocol=question.protocol,
            begin=begin,
            ways=tuple(ways),
            end=end,
            notes=notes,
        )
        return told if watch is None else await _probed(here, found, question, told, watch, elsewhere)
    finally:
        if watch is not None:
            await asyncio.to_thread(here.watching.done, watch)


def _tunnel_port(plans: Plans) -> int:
    links = (link for plan in plans.values() for link in plan.links)
    return next((link.port for link in links if isinstance(link, Vxlan)), VXLAN_PORT)


def _places(plans: Plans, found: Found) -> list[str]:
    """Where the probes that begin here may show on this node."""
    steps = [*found.begin, *found.end, *(step for alone in found.hosted for step in alone.steps)]
    for path in found.paths[:MOST_WAYS]:
        steps += out_of(plans, path.namespace, path.leg.destination)
    legs = (path.leg for path in found.paths[:MOST_WAYS])
    holders = (holder_of(plans, overlay_namespace(leg.network), leg.destination) for leg in legs)
    return [HOST, *(step.namespace for step in steps), *(name for name in holders if name is not None)]


def _hosted(here: Here, alone: Hosted) -> Way:
    return Way(backend=alone.address, hops=_hops(here, alone.steps) + _hops(here, alone.back, BACK))


async def _way(here: Here, path: Path, elsewhere: Elsewhere, watch: Watch | None) -> Way:
    leg, plans = path.leg, here.plans
    steps = list(out_of(plans, path.namespace, leg.destination))
    hops = await asyncio.to_thread(_hops, here, steps)
    unseen = ""
    tunnel = _tunnel(steps)
    look_there = Examination(leg=leg, watch=watch)
    if tunnel is not None:
        try:
            hops += (await elsewhere(tunnel, look_there)).hops
        except HivemeshError as error:
            unseen = str(error)
        reply = Leg(network=leg.network, source=leg.destination, destination=leg.source, peer=tunnel, protocol="icmp")
        hops += await asyncio.to_thread(_hops, here, list(into(plans, reply)), BACK)
    elif holder_of(plans, overlay_namespace(leg.network), leg.destination) is not None:
        hops += (await asyncio.to_thread(examine, here, look_there)).hops
    return Way(backend=leg.destination, hops=hops, unseen=unseen)


def _tunnel(steps: Iterable[Step]) -> Address | None:
    return next((want.vtep for step in steps for want in step.wants if isinstance(want, FdbEntry)), None)


# --- probes -----------------------------------------------------------------------------------------------------------


async def _probed(
    here: Here, found: Found, question: Question, told: Trace, watch: Watch, elsewhere: Elsewhere
) -> Trace:
    paths, whole = found.paths[:MOST_WAYS], found.whole
    aims = [_aim(here.plans, path, 1 if whole is not None else question.count or 1) for path in paths]
    around = _whole(found, question) if whole is not None else None
    if around is not None and question.sender is None:
        aims.append(around)
    salvo = Salvo(watch, aims, lambda: here.watching.seen(watch))
    far = None
    if around is not None and question.sender is not None:
        far = asyncio.create_task(_far(question.sender, around, watch, elsewhere))
    await asyncio.to_thread(salvo.fire)
    sent = await far if far is not None else None
    seen: dict[str, Sequence[Sighting]] = {here.node: salvo.sightings}
    others = _others(here, paths, told)
    if sent is not None and question.sender is not None:
        others[question.sender] = sent.node
    seen.update(await _told(others, watch, elsewhere))
    salvo.sightings += await asyncio.to_thread(here.watching.seen, watch)
    shots: list[Shots] = salvo.shots
    balanced, home, note = None, here.node, ""
    if sent is not None:
        balanced, home = sent.shots, sent.node
        seen[home] = [*seen.get(home, ()), *sent.sightings]
        begin, end = (*sent.hops[:1], *told.begin), (*told.end, *sent.hops[1:])
        told = msgspec.structs.replace(told, source=home, begin=begin, end=end)
    elif around is not None:
        balanced = shots.pop()
        note = BY_ITSELF.format(node=here.node) if around.namespace == HOST else ""
    if balanced is not None and found.hosted:
        shots = [balanced] * len(found.hosted)
    return msgspec.structs.replace(
        with_probes(told, balanced, shots, seen, here.node, home), notes=(*told.notes, *([note] if note else []))
    )


BY_ITSELF = (
    "{node} sent the probes to itself, through hook output; what comes from outside goes through prerouting and "
    "forward: `hivemesh trace OTHER-NODE {node}:PORT` tries that"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """What another node did."""

    node: str
    shots: Shots
    hops: tuple[Hop, ...]
    sightings: tuple[Sighting, ...]


async def _far(sender: Address, aim: Aim, watch: Watch, elsewhere: Elsewhere) -> _Sent:
    order = Order(destination=aim.destination, port=aim.port, protocol=aim.protocol, count=aim.count, first=ELSEWHERE)
    done = await elsewhere(sender, Examination(part="send", watch=watch, order=order))
    numbers = set(range(ELSEWHERE, ELSEWHERE + aim.count * (1 + AGAIN)))
    sent = {s.number for s in done.sightings} | done.failed.keys() | set(range(ELSEWHERE, ELSEWHERE + aim.count))
    shots = Shots(aim=aim, vxlan=watch.vxlan, main=numbers & sent, failed=done.failed)
    return _Sent(node=done.hops[0].node, shots=shots, hops=done.hops, sightings=done.sightings)


def _whole(found: Found, question: Question) -> Aim | None:
    whole = found.whole
    if whole is None:
        return None
    alike = sum(path.leg.destination.version == whole.address.version for path in found.paths)
    return Aim(
        namespace=whole.namespace, destination=whole.address, port=whole.port, count=question.count or max(1, alike),
        protocol=question.protocol if whole.port else "icmp",
    )  # fmt: skip


def _aim(plans: Plans, path: Path, count: int) -> Aim:
    leg = path.leg
    wants = (want for step in out_of(plans, path.namespace, leg.destination) for want in step.wants)
    wide = next((want.mtu for want in wants if isinstance(want, Reach)), 0)
    return Aim(
        namespace=path.namespace, destination=leg.destination, protocol=leg.protocol if leg.port else "icmp",
        port=leg.port, wide=wide, count=count,
    )  # fmt: skip


def _others(here: Here, paths: Sequence[Path], told: Trace) -> dict[Address, str]:
    """The tunnels' ends and names of the other nodes on the ways that look out for probes."""
    found: dict[Address, str] = {}
    for path, way in zip(paths, told.ways, strict=False):
        tunnel = _tunnel(out_of(here.plans, path.namespace, path.leg.destination))
        there = next((hop.node for hop in way.hops if hop.node != here.node and hop.passage is not None), None)
        if tunnel is not None and there is not None:
            found[tunnel] = there
    return found


async def _told(others: Mapping[Address, str], watch: Watch, elsewhere: Elsewhere) -> Mapping[str, Sequence[Sighting]]:
    """What those nodes saw, by their names; those that do not tell are missing."""

    async def ask(vtep: Address) -> tuple[Sighting, ...] | None:
        try:
            return (await elsewhere(vtep, Examination(part="tell", watch=watch))).sightings
        except HivemeshError:
            return None

    answers = await asyncio.gather(*(ask(vtep) for vtep in others))
    return {name: seen for name, seen in zip(others.values(), answers, strict=True) if seen is not None}
