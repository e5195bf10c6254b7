"""Sends the output of this node's tasks to a manager that asks for it, over a connection of its own."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from hivemesh.agent.identity import Identity
from hivemesh.agent.streams import Streams
from hivemesh.engine.api import Engine, LogOptions
from hivemesh.model.errors import HivemeshError
from hivemesh.model.ids import TaskID
from hivemesh.wire.control import LogsUnwanted, LogsWanted
from hivemesh.wire.framing import framed
from hivemesh.wire.logs import Entry, LogLine, LogProblem

QUEUE = 64
"""Lines that wait for the network; then reading waits."""
MOST = 100
"""Readers served at a time; a manager that asks for more is told so by an end without lines."""


class LogSender:
    """`container` gives the id of the container of a task, or nothing when there is none here."""

    def __init__(self, engine: Engine, identity: Callable[[], Identity], container: Callable[[TaskID], str]) -> None:
        self._engine = engine
        self._container = container
        self._streams = Streams("logs", identity, MOST)

    def heed(self, frame: LogsWanted | LogsUnwanted, manager: str) -> None:
        """Begin or end sending to whoever wants it; `manager` (host:port) told us."""
        manager = frame.manager or manager
        if isinstance(frame, LogsUnwanted):
            self._streams.end(frame.id, manager)
        else:
            self._streams.begin(frame.id, manager, lambda: self._stream(frame))

    async def close(self) -> None:
        await self._streams.close()

    async def _stream(self, wanted: LogsWanted) -> AsyncGenerator[bytes, None]:
        """All tasks' lines as they come. Begins with an empty piece, so that the manager hears from us at once."""
        queue: asyncio.Queue[Entry | None] = asyncio.Queue(QUEUE)
        readers = [asyncio.create_task(self._read(task, wanted, queue)) for task in wanted.tasks]
        left = len(readers)
        try:
            while left:
                entry = await queue.get()
                if entry is None:
                    left -= 1
                else:
                    yield framed(entry)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(self, task: TaskID, wanted: LogsWanted, queue: "asyncio.Queue[Entry | None]") -> None:
        options = LogOptions(
            stdout=wanted.stdout, stderr=wanted.stderr, follow=wanted.follow, since=wanted.since, tail=wanted.tail
        )
        try:
            container = self._container(task)
            if not container:
                await queue.put(LogProblem(task, "its container is gone"))
                return
            async for line in self._engine.logs(container, options):
                await queue.put(LogLine(task, line.stream, line.when, line.text))
        except (HivemeshError, OSError) as error:
            await queue.put(LogProblem(task, str(error)))
        finally:
            await queue.put(None)
