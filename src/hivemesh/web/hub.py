"""Who looks at the picture of the swarm, and what they see: nodes are asked only while somebody looks.

nodes --sight, meter--> FeedDesk --> Hub --picture--> page, one-time askers
store --revisions-------------------`   `--pulse----> page, each second
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from dataclasses import dataclass, field

from hivemesh.clock import Clock
from hivemesh.control.manager import Manager
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.web.compose import Seen, compose
from hivemesh.wire.feed import Unheard
from hivemesh.wire.topology import Health, Meter, Picture, Pulse, Sight

SILENT = 3.0
"""Seconds without a word after which a node counts as silent, though nothing broke off: it speaks each second."""
LINGER = 10.0
"""Seconds for which nodes are listened to after the last reader left: pages come back when they open a node."""
PULSE = 1.0
APART = 0.2
"""Seconds between two pictures of one reader at least: a rolling update makes many revisions."""
FIRST_SIGHTS = 2.5
"""Seconds that whoever wants one picture waits for nodes."""
GATHERING = 0.8
"""Seconds that a follower waits for them, so that its first picture does not move at once."""
NO_MANAGER = (
    "this node is no manager that answers: the picture is drawn by managers; open the page, or ask, on one of them"
)


@dataclass(slots=True)
class _Told:
    """The latest of one node. Rates are bytes per second, in and out, by `namespace/device`."""

    sight: Sight | None = None
    meter: Meter | None = None
    heard: float = -1e9  # by the loop's clock
    why: str = ""
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)


class Hub:
    """`manager` gives this node's, if it is one that answers."""

    def __init__(self, manager: Callable[[], Manager | None], clock: Clock) -> None:
        self._manager = manager
        self._clock = clock
        self._told: dict[NodeID, _Told] = {}
        self._readers = 0
        self._heard: Manager | None = None
        """Whose nodes are listened to."""
        self._listening: asyncio.Task[None] | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    async def close(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None

    # --- for readers --------------------------------------------------------------------------------------------------

    async def picture(self, *, detailed: bool | None = None) -> Picture:
        """One, once all nodes that can have told. Raises `Unavailable` where no manager answers."""
        with self._reading() as manager:
            await self._sights(manager, FIRST_SIGHTS)
            return self._compose(manager, (), detailed)

    async def _sights(self, manager: Manager, seconds: float) -> None:
        """Until all nodes that can have told, so long at most."""
        until = asyncio.get_running_loop().time() + seconds
        while True:
            self._changed.clear()
            waiting = [n for n in manager.tables.view.all(Node) if n.state == "ready" and not self._knows(n.id)]
            left = until - asyncio.get_running_loop().time()
            if not waiting or left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    async def follow(
        self, opened: Collection[NodeID] = (), *, detailed: bool | None = None
    ) -> AsyncGenerator[Picture | Pulse, None]:
        """The picture whenever it changes, and a pulse each second; ends when this node is no manager any more."""
        with self._reading() as manager:
            loop = asyncio.get_running_loop()
            await self._sights(manager, GATHERING)
            last: Picture | None = None
            beat = 0.0
            while self._manager() is manager:
                revision = manager.tables.view.revision
                sights = self._signature()
                picture = self._compose(manager, opened, detailed, last)
                if picture != last:
                    last = picture
                    yield picture
                    if not beat:
                        yield self._pulse(last)
                begun = loop.time()
                beat = max(beat, begun)
                while manager.tables.view.revision == revision and self._signature() == sights:
                    left = beat + PULSE - loop.time()
                    if left <= 0:
                        beat += PULSE
                        yield self._pulse(last)
                        continue
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min(left, APART)):
                            await manager.tables.changed(revision)
                await asyncio.sleep(max(0.0, APART - (loop.time() - begun)))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Manager]:
        manager = self._manager()
        if manager is None or manager.feeds is None:
            raise Unavailable(NO_MANAGER)
        self._readers += 1
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if self._listening is not None and self._heard is not manager:
            self._listening.cancel()  # of the time before this node was a manager again
        if self._listening is None or self._listening.done() or self._heard is not manager:
            self._told.clear()
            self._heard = manager
            self._listening = asyncio.create_task(self._listen(manager), name="topology")
        try:
            yield manager
        finally:
            self._readers -= 1
            if not self._readers:
                self._leaving = asyncio.get_running_loop().call_later(LINGER, self._leave)

    def _leave(self) -> None:
        if not self._readers and self._listening is not None:
            self._listening.cancel()

    # --- what nodes tell ----------------------------------------------------------------------------------------------

    async def _listen(self, manager: Manager) -> None:
        assert manager.feeds is not None
        entries = manager.feeds.read(lambda: list(manager.tables.view.all(Node)), "picture")
        async with contextlib.aclosing(entries):
            async for entry in entries:
                if isinstance(entry, Sight):
                    told = self._told.setdefault(entry.node_id, _Told())
                    told.sight, told.heard, told.why = entry, asyncio.get_running_loop().time(), ""
                    told.meter = None  # of devices in another order
                elif isinstance(entry, Meter):
                    self._measure(entry)
                elif isinstance(entry, Unheard):
                    self._miss(manager, entry)
                self._changed.set()

    def _miss(self, manager: Manager, entry: Unheard) -> None:
        for node in manager.tables.view.all(Node):
            if (node.description.hostname or node.id) == entry.node:
                told = self._told.setdefault(node.id, _Told())
                told.heard, told.why = -1e9, entry.reason

    def _measure(self, meter: Meter) -> None:
        told = self._told.setdefault(meter.node_id, _Told())
        told.heard, told.why = asyncio.get_running_loop().time(), ""
        if told.sight is None:
            return
        names = [f"{space.namespace}/{device.name}" for space in told.sight.spaces for device in space.devices]
        before, told.meter = told.meter, meter
        if before is None or len(before.carried) != len(meter.carried) or len(names) * 2 != len(meter.carried):
            return
        passed = meter.at - before.at
        if passed <= 0:
            return
        each = [max(0, now - then) / passed for then, now in zip(before.carried, meter.carried, strict=True)]
        told.rates = {
            name: (each[2 * i], each[2 * i + 1]) for i, name in enumerate(names) if each[2 * i] or each[2 * i + 1]
        }

    def _knows(self, node: NodeID) -> bool:
        told = self._told.get(node)
        return told is not None and told.sight is not None

    def _silent(self, node: NodeID) -> str:
        told = self._told.get(node)
        if told is None or (told.sight is None and not told.why):
            return "nothing heard of its kernel yet"
        return "" if asyncio.get_running_loop().time() - told.heard < SILENT else told.why or "silent"

    def _signature(self) -> tuple[object, ...]:
        """Tells whether the picture may have changed but for the store."""
        return tuple((node, id(told.sight), self._silent(node)) for node, told in self._told.items())

    # --- what readers see ---------------------------------------------------------------------------------------------

    def _compose(
        self, manager: Manager, opened: Collection[NodeID], detailed: bool | None, last: Picture | None = None
    ) -> Picture:
        """While no node comes or goes, all stay in the rows of the `last` picture."""
        view = manager.tables.view
        seen = {
            node.id: Seen(sight=self._told[node.id].sight if node.id in self._told else None,
                          silent=self._silent(node.id))
            for node in view.all(Node)
        }  # fmt: skip
        before = sum(item.kind == "machine" for item in last.items) if last is not None else 0
        columns = last.columns if last is not None and before == len(seen) else 0
        return compose(view, seen, leader=manager.leader, opened=opened, detailed=detailed, columns=columns)

    def _pulse(self, picture: Picture) -> Pulse:
        rates: dict[str, tuple[float, float]] = {}
        for link in picture.links:
            if link.meter:
                node, _, name = link.meter.partition("/")
                told = self._told.get(NodeID(node))
                quiet = told is None or self._silent(NodeID(node))
                rate = told.rates.get(name) if told is not None and not quiet else None
                if rate is not None:
                    rates[link.id] = (round(rate[0], 1), round(rate[1], 1))
        machines = [item for item in picture.items if item.kind == "machine"]
        nodes = {item.id: self._health(item.id, rates.get(f"tunnel/{item.id}/", (0.0, 0.0))) for item in machines}
        return Pulse(at=self._clock.now(), rates=rates, nodes=nodes)

    def _health(self, node: str, rate: tuple[float, float]) -> Health:
        told = self._told.get(NodeID(node))
        if told is None or told.meter is None:
            return Health(state="idle", words=self._silent(NodeID(node)))
        meter = told.meter
        return Health(
            words=self._silent(NodeID(node)) or meter.error,
            repairs=meter.repairs,
            lag=round(meter.lag, 4),
            behind=round(meter.behind, 2),
            received=rate[0],
            sent=rate[1],
        )
