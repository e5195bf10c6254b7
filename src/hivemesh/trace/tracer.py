"""Answers questions about ways: this node's part by its own kernel, the other end's part by its node."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.plan.names import overlay_namespace
from hivemesh.kernel import machine
from hivemesh.kernel.api import FdbEntry
from hivemesh.kernel.linux import Linux
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError
from hivemesh.trace.judge import hop_of
from hivemesh.trace.kernel import look
from hivemesh.trace.question import Path, find
from hivemesh.trace.way import Plans, Step, holder_of, into, out_of
from hivemesh.wire.trace import Examined, Hop, Leg, Question, Trace, Way

BACK = "back: "
Elsewhere = Callable[[Address, Leg], Awaitable[Examined]]
"""Ask the node with that VTEP. Raises a `HivemeshError` that says why it cannot be asked."""


def examine(linux: Linux, node: str, plans: Plans, leg: Leg) -> Examined:
    """The part of a way that lies with its target: in, and back out. Blocks."""
    steps = list(into(plans, leg))
    holder = holder_of(plans, overlay_namespace(leg.network), leg.destination)
    hops = _hops(linux, node, plans, steps)
    if holder is not None:
        hops += _hops(linux, node, plans, out_of(plans, holder, leg.source), BACK)
    return Examined(hops=hops)


def _hops(linux: Linux, node: str, plans: Plans, steps: Iterable[Step], prefix: str = "") -> tuple[Hop, ...]:
    found = (hop_of(node, step, look(linux, plans, step)) for step in steps)
    return tuple(Hop(node=h.node, namespace=h.namespace, title=prefix + h.title, facts=h.facts) for h in found)


async def trace(
    linux: Linux, node: str, parts: ViewParts, plans: Plans, question: Question, vtep: Address, elsewhere: Elsewhere
) -> Trace:
    """All ways of a question. Raises `NotFound` or `Invalid` when the question leads nowhere at all."""
    own = {found.address.ip for found in await asyncio.to_thread(machine.addresses)}
    found = find(parts, plans, question, vtep, own)
    begin = await asyncio.to_thread(_hops, linux, node, plans, found.begin)
    ways = await asyncio.gather(*(_way(linux, node, plans, path, elsewhere) for path in found.paths))
    return Trace(source=found.source, target=found.target, protocol=question.protocol, begin=begin, ways=tuple(ways))


async def _way(linux: Linux, node: str, plans: Plans, path: Path, elsewhere: Elsewhere) -> Way:
    leg = path.leg
    steps = list(out_of(plans, path.namespace, leg.destination))
    hops = await asyncio.to_thread(_hops, linux, node, plans, steps)
    unseen = ""
    tunnels = [want.vtep for step in steps for want in step.wants if isinstance(want, FdbEntry)]
    if tunnels:
        try:
            hops += (await elsewhere(tunnels[0], leg)).hops
        except HivemeshError as error:
            unseen = str(error)
    elif holder_of(plans, overlay_namespace(leg.network), leg.destination) is not None:
        hops += (await asyncio.to_thread(examine, linux, node, plans, leg)).hops
    return Way(backend=leg.destination, hops=hops, unseen=unseen)
