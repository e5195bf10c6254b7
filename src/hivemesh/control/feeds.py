"""What nodes tell of their traffic, on its way to whoever reads it at this manager.

A reader that cannot keep up loses entries and hears how many; no node ever waits for it. Nodes that come, or come
back, while somebody reads are asked too.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from hivemesh.clock import Clock
from hivemesh.control.logs import Tell
from hivemesh.model.errors import Forbidden
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.wire.control import FeedUnwanted, FeedWanted
from hivemesh.wire.feed import Counts, Entry, Flow, Lost, Unheard, What, unframer
from hivemesh.wire.topology import Meter, Sight

log = logging.getLogger("hivemesh.feed")

QUEUE = 4096
"""Entries that wait for a reader."""
LOOK_PERIOD = 2.0
"""Seconds between looks whether there are nodes that tell nothing yet."""

Nodes = Callable[[], Iterable[Node]]


@dataclass(slots=True)
class _Reader:
    entries: "asyncio.Queue[Entry]" = field(default_factory=lambda: asyncio.Queue(QUEUE))
    asked: dict[NodeID, str] = field(default_factory=dict)  # the id of what each node was asked
    names: dict[NodeID, str] = field(default_factory=dict)
    silent: dict[NodeID, str] = field(default_factory=dict)  # what was said of those that tell nothing
    lost: Counter[str] = field(default_factory=Counter)  # by the node's name

    def put(self, entry: Entry) -> None:
        try:
            self.entries.put_nowait(entry)
        except asyncio.QueueFull:
            self.lost[entry.node] += entry.count if isinstance(entry, Lost) else isinstance(entry, Flow)

    def told(self) -> list[Entry]:
        """What was lost since the last call."""
        lost, self.lost = self.lost, Counter()
        return [Lost(node=node, count=count) for node, count in sorted(lost.items()) if count]


class FeedDesk:
    """All readers at this manager."""

    def __init__(self, tell: Tell, clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._ids = itertools.count(1)
        self._readers: dict[str, tuple[NodeID, _Reader]] = {}  # by the id of each request

    async def read(self, nodes: Nodes, what: What) -> AsyncGenerator[Entry, None]:
        """What the `nodes` tell, which are asked for again and again; without an end."""
        reader = _Reader()
        asking = asyncio.create_task(self._ask(reader, nodes, what), name=f"ask for {what}")
        try:
            while True:
                getter = asyncio.ensure_future(reader.entries.get())
                try:
                    await asyncio.wait({getter, asking}, return_when=asyncio.FIRST_COMPLETED)
                    if not getter.done():
                        asking.result()  # its failure is ours
                    entry = await getter
                finally:
                    getter.cancel()
                yield entry
                if reader.lost and reader.entries.empty():
                    for lost in reader.told():
                        yield lost
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for node, identifier in reader.asked.items():
                self._readers.pop(identifier, None)
                with contextlib.suppress(Exception):
                    await self._tell(node, FeedUnwanted(id=identifier))

    async def receive(self, identifier: str, node: NodeID, stream: AsyncIterator[bytes]) -> None:
        """What an agent posts, until nobody reads it. Raises `Forbidden` when that node was not asked this."""
        asked, reader = self._readers.get(identifier, (None, None))
        if reader is None or asked != node:
            raise Forbidden(f"nobody reads feed {identifier} of this node")
        pieces = unframer()
        try:
            async for piece in stream:
                for entry in pieces.feed(piece):
                    if identifier not in self._readers:
                        return
                    entry = msgspec.structs.replace(entry, node=reader.names[node])  # nobody speaks for others
                    known = isinstance(entry, Counts | Sight | Meter)
                    reader.put(msgspec.structs.replace(entry, node_id=node) if known else entry)
        finally:
            self._readers.pop(identifier, None)
            if reader.asked.get(node) == identifier:
                del reader.asked[node]  # asked again soon
                reader.silent[node] = "its stream broke off"
                reader.put(Unheard(node=reader.names[node], reason=reader.silent[node]))

    async def _ask(self, reader: _Reader, nodes: Nodes, what: What) -> None:
        while True:
            found = {node.id: node for node in nodes()}
            waiting = [node for key, node in found.items() if key not in reader.asked]
            await asyncio.gather(*(self._ask_node(reader, node, what) for node in waiting))
            for key in reader.silent.keys() - found.keys():
                del reader.silent[key]
            await self._clock.sleep(LOOK_PERIOD)

    async def _ask_node(self, reader: _Reader, node: Node, what: What) -> None:
        name = node.description.hostname or node.id
        reader.names[node.id] = name
        reason = f"it is {node.state}"
        if node.state == "ready":
            identifier = str(next(self._ids))
            reader.asked[node.id] = identifier
            self._readers[identifier] = node.id, reader
            if await self._tell(node.id, FeedWanted(id=identifier, what=what)):
                reader.silent.pop(node.id, None)
                return
            self._readers.pop(identifier, None)
            reader.asked.pop(node.id, None)
            reason = "it has no session with the managers"
        if reader.silent.get(node.id) != reason:
            reader.silent[node.id] = reason
            reader.put(Unheard(node=name, reason=reason))
