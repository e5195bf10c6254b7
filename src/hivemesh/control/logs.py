"""Output of tasks, wherever they ran: a manager asks the nodes and merges what they send.

Lines come in the order in which they arrive; each carries its own time. One reader that is slow holds up its own
nodes' senders, by TCP, and nobody else. Reading ends when all nodes have sent all there is; with `follow` it goes on,
tasks that begin later included, until the reader leaves or no task is left that could say anything.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hivemesh.clock import Clock
from hivemesh.model.errors import Forbidden
from hivemesh.model.ids import NodeID, TaskID
from hivemesh.model.task import Task
from hivemesh.store.tables import Tables
from hivemesh.wire.control import FromManager, LogsUnwanted, LogsWanted
from hivemesh.wire.logs import Entry, LogProblem, LogQuery, unframer

QUEUE = 256
"""Entries that wait for a reader; then senders wait."""
ANSWER_TIMEOUT = 10.0
"""Seconds a node may take until it begins to send."""

Tell = Callable[[NodeID, FromManager], Awaitable[bool]]
"""Send a frame to a node's agent; False when it has no session here."""


@dataclass(slots=True)
class _Request:
    """What was asked of one node."""

    node: NodeID
    tasks: tuple[TaskID, ...]
    begun: bool = False


@dataclass(slots=True)
class _Reader:
    entries: "asyncio.Queue[Entry]" = field(default_factory=lambda: asyncio.Queue(QUEUE))
    requests: dict[str, _Request] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False


class LogDesk:
    """All readers at this manager."""

    def __init__(self, tables: Tables, tell: Tell, clock: Clock) -> None:
        self._tables = tables
        self._tell = tell
        self._clock = clock
        self._ids = itertools.count(1)
        self._readers: dict[str, _Reader] = {}  # by the id of each request

    async def read(self, tasks: Callable[[], Iterable[Task]], query: LogQuery) -> AsyncIterator[Entry]:
        """The output of what `tasks` gives, which is asked again while following."""
        reader = _Reader()
        asker = asyncio.create_task(self._ask(reader, tasks, query), name="ask for logs")
        try:
            while True:
                getter = asyncio.ensure_future(reader.entries.get())
                try:
                    await asyncio.wait({getter, asker}, return_when=asyncio.FIRST_COMPLETED)
                    if getter.done():
                        yield getter.result()
                        continue
                finally:
                    getter.cancel()
                asker.result()  # its failure is ours
                while not reader.entries.empty():
                    yield reader.entries.get_nowait()
                return
        finally:
            asker.cancel()
            reader.left = True
            while not reader.entries.empty():  # whoever waits for room goes on, and sees that nobody reads
                reader.entries.get_nowait()
            for identifier, request in reader.requests.items():
                self._readers.pop(identifier, None)
                await self._tell(request.node, LogsUnwanted(id=identifier))

    async def receive(self, identifier: str, node: NodeID, stream: AsyncIterator[bytes]) -> None:
        """What an agent posts, to its end. Raises `Forbidden` when that node was not asked this."""
        reader = self._readers.get(identifier)
        if reader is None or reader.requests[identifier].node != node:
            raise Forbidden(f"nobody reads logs {identifier} of this node")
        request, pieces = reader.requests[identifier], unframer()
        request.begun = True
        try:
            async for piece in stream:
                for entry in pieces.feed(piece):
                    if reader.left:
                        return
                    if entry.task in request.tasks:
                        await reader.entries.put(entry)
        finally:
            self._end(reader, identifier)

    def _end(self, reader: _Reader, identifier: str) -> None:
        self._readers.pop(identifier, None)
        reader.requests.pop(identifier, None)
        reader.wake.set()

    async def _ask(self, reader: _Reader, tasks: Callable[[], Iterable[Task]], query: LogQuery) -> None:
        """Ask each node for the tasks it has; until nothing more can come."""
        asked: set[TaskID] = set()
        while True:
            revision = self._tables.view.revision
            fresh: dict[NodeID, list[TaskID]] = {}
            living = False
            for task in tasks():
                living |= not task.status.state.dead
                if task.id not in asked and task.node_id is not None and task.status.container_id:
                    fresh.setdefault(task.node_id, []).append(task.id)
                    asked.add(task.id)
            await asyncio.gather(*(self._ask_node(reader, node, found, query) for node, found in fresh.items()))
            query = replace(query, tail=-1)  # of what begins later, everything
            if not reader.requests and not (query.follow and living):
                return
            await self._until_changed(reader, revision, following=query.follow)

    async def _until_changed(self, reader: _Reader, revision: int, *, following: bool) -> None:
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(reader.wake.wait())]
        if following:
            waits.append(asyncio.ensure_future(self._tables.changed(revision)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        reader.wake.clear()

    async def _ask_node(self, reader: _Reader, node: NodeID, tasks: list[TaskID], query: LogQuery) -> None:
        identifier = str(next(self._ids))
        reader.requests[identifier] = request = _Request(node, tuple(tasks))
        self._readers[identifier] = reader
        wanted = LogsWanted(
            id=identifier,
            tasks=tuple(tasks),
            stdout=query.stdout,
            stderr=query.stderr,
            follow=query.follow,
            since=query.since,
            tail=query.tail,
        )
        reason = "its node is not connected to this manager"
        if await self._tell(node, wanted):
            if await self._begins(reader, request, identifier):
                return
            reason = f"its node did not answer in {ANSWER_TIMEOUT:g} s"
        self._end(reader, identifier)
        for task in tasks:
            await reader.entries.put(LogProblem(task, reason))

    async def _begins(self, reader: _Reader, request: _Request, identifier: str) -> bool:
        step = 0.05
        for _ in range(int(ANSWER_TIMEOUT / step)):
            if request.begun or identifier not in reader.requests:
                return True
            await self._clock.sleep(step)
        return False
