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
BEGIN_TIMEOUT = 5.0
"""Seconds until a node begins to tell, or is asked again: a session that was just breaking carries nothing."""

Nodes = Callable[[], Iterable[Node]]


@dataclass(slots=True)
class _Request:
    """What was asked of one node."""

    id: str
    at: float  # by the steady clock
    begun: bool = False


@dataclass(slots=True)
class _Reader:
    entries: "asyncio.Queue[Entry]" = field(default_factory=lambda: asyncio.Queue(QUEUE))
    asked: dict[NodeID, _Request] = field(default_factory=dict)
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
            for node, request in reader.asked.items():
                self._readers.pop(request.id, None)
                with contextlib.suppress(Exception):
                    await self._tell(node, FeedUnwanted(id=request.id))

    async def receive(self, identifier: str, node: NodeID, stream: AsyncIterator[bytes]) -> None:
        """What an agent posts, until nobody reads it. Raises `Forbidden` when that node was not asked this."""
        asked, reader = self._readers.get(identifier, (None, None))
        if reader is None or asked != node:
            raise Forbidden(f"nobody reads feed {identifier} of this node")
        request, pieces = reader.asked[node], unframer()
        request.begun = True
        reader.silent.pop(node, None)
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
            if reader.asked.get(node) is request:
                del reader.asked[node]  # asked again soon
                self._miss(reader, node, "its stream broke off")

    async def _ask(self, reader: _Reader, nodes: Nodes, what: What) -> None:
        while True:
            found = {node.id: node for node in nodes()}
            self._give_up(reader)
            waiting = [node for key, node in found.items() if key not in reader.asked]
            await asyncio.gather(*(self._ask_node(reader, node, what) for node in waiting))
            for key in reader.silent.keys() - found.keys():
                del reader.silent[key]
            await self._clock.sleep(LOOK_PERIOD)

    async def _ask_node(self, reader: _Reader, node: Node, what: What) -> None:
        reader.names[node.id] = node.description.hostname or node.id
        reason = f"it is {node.state}"
        if node.state == "ready":
            request = _Request(str(next(self._ids)), self._clock.steady())
            reader.asked[node.id] = request
            self._readers[request.id] = node.id, reader
            if await self._tell(node.id, FeedWanted(id=request.id, what=what)):
                return
            self._readers.pop(request.id, None)
            reader.asked.pop(node.id, None)
            reason = "it has no session with the managers"
        self._miss(reader, node.id, reason)

    def _give_up(self, reader: _Reader) -> None:
        """On requests that no node took up: they are asked again."""
        late = self._clock.steady() - BEGIN_TIMEOUT
        for node, request in list(reader.asked.items()):
            if not request.begun and request.at <= late:
                self._readers.pop(request.id, None)
                del reader.asked[node]
                self._miss(reader, node, f"it did not answer in {BEGIN_TIMEOUT:g} s")

    def _miss(self, reader: _Reader, node: NodeID, reason: str) -> None:
        """Say why a node tells nothing, once."""
        if reader.silent.get(node) != reason:
            reader.silent[node] = reason
            reader.put(Unheard(node=reader.names[node], reason=reason))
