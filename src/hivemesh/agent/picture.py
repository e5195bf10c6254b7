"""What this node's kernel holds, told each second while somebody looks: namespaces, links, who is plugged in where."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

from hivemesh.agent.worker import Worker
from hivemesh.clock import Clock
from hivemesh.kernel.api import HOST, Bridge, NamespacePlan, Veth
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.rtnl import Rtnl
from hivemesh.model.addr import Address
from hivemesh.model.ids import NodeID
from hivemesh.wire.rtnetlink import LinkSeen
from hivemesh.wire.topology import Device, Meter, Sight, Space

PERIOD = 1.0
"""Seconds between two looks at what links have carried."""
AGAIN = 3.0
"""Seconds between two looks at the links themselves, while no plan changes: what somebody else broke is seen then."""
SHARE = 0.1
"""The part of one processor that looks may take: with many hundred namespaces they come less often."""
FORGET = 15.0
"""Seconds after which the whole sight is told again: who reads slowly loses what was told in between."""

Links = Mapping[str, LinkSeen]
Plans = Mapping[str, NamespacePlan]


@dataclass(frozen=True, slots=True)
class Look:
    """Namespaces, and the indexes of their devices in the same order."""

    spaces: tuple[Space, ...]
    indexes: tuple[tuple[str, tuple[int, ...]], ...]


class Pictures:
    """`error` says what ails the session with the managers."""

    def __init__(
        self,
        *,
        node: str,
        node_id: NodeID,
        vtep: Address,
        linux: Linux,
        worker: Callable[[], Worker],
        error: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._node = node
        self._node_id = node_id
        self._vtep = vtep
        self._linux = linux
        self._worker = worker
        self._error = error
        self._clock = clock

    async def told(self) -> AsyncGenerator[Sight | Meter, None]:
        """Without an end: a sight whenever it changed, and a meter each second."""
        look = Look((), ())
        plans: Plans = {}
        seen = told = -FORGET
        while True:
            begun = time.monotonic()
            worker = self._worker()
            now = worker.plans
            carried = None
            if now == plans and begun - seen < AGAIN:
                carried = await asyncio.to_thread(carried_by, self._linux, look)
            if carried is None:
                before, plans, seen = look.spaces, now, begun
                look = await asyncio.to_thread(look_at, self._linux, plans, self._vtep)
                if look.spaces != before or begun - told > FORGET:
                    told = begun
                    yield Sight(
                        node=self._node,
                        node_id=self._node_id,
                        at=self._clock.now(),
                        vtep=self._vtep,
                        spaces=look.spaces,
                    )
                carried = await asyncio.to_thread(carried_by, self._linux, look)
            if carried is not None:  # else something went between two looks: the next one comes at once
                yield Meter(
                    node=self._node,
                    node_id=self._node_id,
                    at=self._clock.now(),
                    carried=carried,
                    repairs=sum(worker.drift.values()),
                    behind=worker.behind,
                    lag=worker.lag,
                    error=self._error(),
                )
            spent = time.monotonic() - begun
            await self._clock.sleep(max(PERIOD - spent, spent / SHARE - spent))


def carried_by(linux: Linux, look: Look) -> tuple[int, ...] | None:
    """Bytes in and out of each device of the look, in its order; None when one of them is there no more. Blocks."""
    found: list[int] = []
    for namespace, indexes in look.indexes:
        try:
            counters = linux.door(namespace).counters()
        except OSError:
            return None
        for index in indexes:
            if index not in counters:
                return None
            found += counters[index]
    return tuple(found)


def look_at(linux: Linux, plans: Plans, vtep: Address) -> Look:
    """What the namespaces of these plans hold now. Blocks; what cannot be read says why."""
    seen: dict[str, Links] = {}
    problems: dict[str, str] = {}
    for namespace in plans:
        try:
            seen[namespace] = linux.door(namespace).links()
        except FileNotFoundError:
            problems[namespace] = "the namespace is missing"
        except OSError as error:
            problems[namespace] = f"cannot be read: {error.strerror or error}"
    spaces: list[Space] = []
    indexes: list[tuple[str, tuple[int, ...]]] = []
    for namespace, plan in plans.items():
        if namespace in problems:
            spaces.append(Space(namespace=namespace, mark=plan.mark, problem=problems[namespace]))
            continue
        try:
            space, numbers = _space(linux.door(namespace), plan, seen, vtep)
        except OSError as error:
            spaces.append(Space(namespace=namespace, mark=plan.mark, problem=f"cannot be read: {error}"))
            continue
        spaces.append(space)
        indexes.append((namespace, numbers))
    return Look(tuple(spaces), tuple(indexes))


def _space(door: Rtnl, plan: NamespacePlan, seen: Mapping[str, Links], vtep: Address) -> tuple[Space, tuple[int, ...]]:
    links = seen[plan.namespace]
    held: dict[int, list[str]] = {}
    underlay = 0
    for address in door.addresses():
        if address.link_local:
            continue
        held.setdefault(address.index, []).append(str(address.address))
        if address.address.ip == vtep:
            underlay = address.index
    names = {link.index: name for name, link in links.items()}
    inner = {link.name: link for link in plan.links if isinstance(link, Veth)}
    bridges = {link.name for link in plan.links if isinstance(link, Bridge)}
    devices: list[Device] = []
    indexes: list[int] = []
    vteps: dict[str, int] = {}
    for name, link in links.items():
        if plan.namespace == HOST:
            shown = name in bridges or link.index == underlay
        else:
            shown = link.kind in ("bridge", "vxlan", "macvlan") or name in inner
        if not shown:
            continue
        peer, plugged = _other_end(inner.get(name), link, seen)
        devices.append(
            Device(
                name=name,
                kind=link.kind,
                up=link.up,
                mtu=link.mtu,
                master=names.get(link.master, ""),
                peer=peer,
                plugged=plugged,
                addresses=tuple(sorted(held.get(link.index, ()))),
                vni=link.vxlan.vni if link.vxlan is not None else 0,
            )
        )
        indexes.append(link.index)
        if link.kind == "vxlan":
            for entry in door.fdb(link.index):
                if entry.vtep is not None:
                    vteps[str(entry.vtep)] = vteps.get(str(entry.vtep), 0) + 1
    space = Space(namespace=plan.namespace, mark=plan.mark, devices=tuple(devices), vteps=dict(sorted(vteps.items())))
    return space, tuple(indexes)


def _other_end(wanted: Veth | None, link: LinkSeen, seen: Mapping[str, Links]) -> tuple[str, str]:
    """Where a veth leads, and the bridge there; both ends must name each other, else it leads nowhere we know."""
    if wanted is None:
        return "", ""
    there = seen.get(wanted.outer.namespace, {})
    outer = there.get(wanted.outer.name)
    if outer is None or outer.index != link.peer or outer.peer != link.index:
        return "", ""
    master = next((name for name, port in there.items() if port.index == outer.master), "") if outer.master else ""
    return f"{wanted.outer.namespace}/{wanted.outer.name}", master
