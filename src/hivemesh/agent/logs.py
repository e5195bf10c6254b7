"""Sends the output of this node's tasks to a manager that asks for it, over a connection of its own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import aiohttp

from hivemesh.agent.identity import Identity
from hivemesh.engine.api import Engine, LogOptions
from hivemesh.model.errors import HivemeshError
from hivemesh.model.ids import TaskID
from hivemesh.pki import MANAGER_NAME
from hivemesh.wire.control import LogsUnwanted, LogsWanted
from hivemesh.wire.logs import Entry, LogLine, LogProblem, framed

log = logging.getLogger("hivemesh.logs")

QUEUE = 64
"""Lines that wait for the network; then reading waits."""
CONNECT_TIMEOUT = 5.0
MOST = 100
"""Readers served at a time; a manager that asks for more is told so by an end without lines."""


class LogSender:
    """`container` gives the id of the container of a task, or nothing when there is none here."""

    def __init__(self, engine: Engine, identity: Callable[[], Identity], container: Callable[[TaskID], str]) -> None:
        self._engine = engine
        self._identity = identity
        self._container = container
        self._sending: dict[tuple[str, str], asyncio.Task[None]] = {}

    def heed(self, frame: LogsWanted | LogsUnwanted, manager: str) -> None:
        """Begin or end sending to whoever wants it; `manager` (host:port) told us."""
        manager = frame.manager or manager
        key = (manager, frame.id)
        if isinstance(frame, LogsUnwanted):
            if key in self._sending:
                self._sending[key].cancel()
        elif key not in self._sending and len(self._sending) < MOST:
            sending = asyncio.create_task(self._send(frame, manager), name=f"logs {frame.id}")
            self._sending[key] = sending
            sending.add_done_callback(lambda _: self._sending.pop(key, None))

    async def close(self) -> None:
        for sending in self._sending.values():
            sending.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def _send(self, wanted: LogsWanted, manager: str) -> None:
        identity = self._identity()
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        try:
            async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
                async with http.post(
                    f"https://{manager}/v1/logs/{wanted.id}",
                    data=self._stream(wanted),
                    ssl=identity.client_context(),
                    server_hostname=MANAGER_NAME,
                ) as response:
                    if response.status >= 300:
                        log.info("the manager at %s wants logs %s no more", manager, wanted.id)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("cannot send logs to the manager at %s: %s", manager, error)

    async def _stream(self, wanted: LogsWanted) -> AsyncIterator[bytes]:
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
