"""The flow log of this node: while somebody reads it, each new connection with its names.

It must never slow the connections down that it tells of. The kernel is asked only while there is a reader; what comes
is looked at four times a second, and no more of it than `RATE`; beyond that the kernel drops it, and says how much.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from hivemesh.clock import Clock
from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.plan.ingress import GATEWAY_LINK
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX
from hivemesh.kernel.api import HOST
from hivemesh.kernel.flows import FlowSocket, Tracked
from hivemesh.metrics.naming import Names
from hivemesh.metrics.reading import Plans, host_backends, sandboxes
from hivemesh.model.addr import Address
from hivemesh.model.task import Task
from hivemesh.wire.feed import Entry, Lost

log = logging.getLogger("hivemesh.flows")

PERIOD = 0.25
"""Seconds between looks."""
RATE = 1000
"""Connections told per second, at most: one takes some 20 microseconds to name."""
QUEUE = 4096
"""Entries that wait for one reader."""


class FlowLog:
    """`parts` is the node's view (None: there is none yet), `plans` what its kernel holds."""

    def __init__(
        self, node: str, clock: Clock, parts: Callable[[], ViewParts | None], plans: Callable[[], Plans]
    ) -> None:
        self._node = node
        self._clock = clock
        self._parts = parts
        self._plans = plans
        self._sockets: dict[str, FlowSocket] = {}
        self._readers: dict[asyncio.Queue[Entry], int] = {}  # with how much each has lost
        self._running: asyncio.Task[None] | None = None
        self._own: dict[Address, Task] = {}  # tasks with ports in host mode
        self._names: tuple[ViewParts, Names] | None = None
        self.told = 0
        self.lost = 0

    async def read(self) -> AsyncGenerator[Entry, None]:
        """From now on, without an end."""
        queue: asyncio.Queue[Entry] = asyncio.Queue(QUEUE)
        self._readers[queue] = 0
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="flow log")
        try:
            while True:
                yield await queue.get()
                if queue.empty() and (lost := self._readers[queue]):
                    self._readers[queue] = 0
                    yield Lost(node=self._node, count=lost)
        finally:
            del self._readers[queue]
            if not self._readers:
                await self.close()

    async def close(self) -> None:
        """Hear of nothing more."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while True:
                await self._follow()
                self._look()
                await self._clock.sleep(PERIOD)
        finally:
            for sock in self._sockets.values():
                sock.close()
            self._sockets.clear()

    async def _follow(self) -> None:
        """Hear of all sandboxes there are. One that goes is let go within `PERIOD`: our socket would keep it alive."""
        plans = self._plans()
        parts = self._parts()
        self._own = host_backends(parts, plans) if parts is not None else {}
        wanted = {name for name, _ in sandboxes(plans)} | ({INGRESS_SANDBOX} & plans.keys())
        wanted |= {HOST} if self._own else set()
        for name in self._sockets.keys() - wanted:
            self._sockets.pop(name).close()
        for name in wanted - self._sockets.keys():
            with contextlib.suppress(FileNotFoundError):
                try:
                    sock = await asyncio.to_thread(FlowSocket, name, self._past_mesh() if name == HOST else None)
                except OSError as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    log.warning("new connections in %s are not told of: %s", name, error)
                    continue
                self._sockets[name] = sock

    def _past_mesh(self) -> tuple[IPv4Address, IPv6Address]:
        """Where the host leads what `ingress_sbox` tells of itself; nowhere without a mesh."""
        plan = self._plans().get(INGRESS_SANDBOX)
        found = [a.address.ip for a in plan.addresses if a.link == GATEWAY_LINK] if plan is not None else []
        v4 = next((a for a in found if isinstance(a, IPv4Address)), IPv4Address(0))
        return v4, next((a for a in found if isinstance(a, IPv6Address)), IPv6Address(0))

    def _look(self) -> None:
        parts, plans, at = self._parts(), self._plans(), self._clock.now()
        if parts is None:
            return
        if self._names is None or self._names[0] is not parts:
            self._names = parts, Names(parts, self._node)
        names, left, entries = self._names[1], int(RATE * PERIOD), list[Entry]()
        # the mesh goes first; where it takes all, the sandboxes' events are lost, and counted
        for name in (*self._sockets.keys() & {INGRESS_SANDBOX}, *(self._sockets.keys() - {INGRESS_SANDBOX})):
            found: Iterable[Tracked] = self._sockets[name].read(left) if left > 0 else ()
            for tracked in found:
                left -= 1
                if name == HOST:
                    flow = names.in_host_mode(tracked, self._own, at)
                else:
                    flow = names.flow(name, plan, tracked, at) if (plan := plans.get(name)) is not None else None
                if flow is not None:
                    entries.append(flow)
            if lost := self._sockets[name].lost():
                self.lost += lost
                entries.append(Lost(node=self._node, count=lost))
        self.told += len(entries)
        for entry in entries:
            self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        for queue in self._readers:
            try:
                queue.put_nowait(entry)
            except asyncio.QueueFull:
                self._readers[queue] += entry.count if isinstance(entry, Lost) else 1
