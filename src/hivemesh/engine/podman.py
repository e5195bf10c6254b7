"""Podman as the engine of tasks, over its libpod REST API on a unix socket.

The service behind the socket is started on demand. That a container ended is learnt from its process, so no stream
keeps the service awake; only then is Podman asked for the exit code. Every call may be repeated, so one that meets a
service on its way out is simply made again.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from signal import SIGKILL, SIGTERM, pidfd_send_signal
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec

from hivemesh.engine.api import (
    TASK_LABEL,
    ContainerInfo,
    ContainerRequest,
    EngineError,
    EngineInfo,
    ImageFacts,
    ImageNotFound,
    LogOptions,
    Output,
    Ran,
)
from hivemesh.engine.host import HostNeeds, host_needs
from hivemesh.engine.libpod import (
    INITIALIZED,
    PREFIX,
    Created,
    ExecSession,
    Image,
    Inspected,
    Listed,
    PullLine,
    create_body,
    demultiplexed,
    docker_reference,
    info_of,
    info_of_listed,
    output_of,
    words_of,
)
from hivemesh.engine.prepare import prepared
from hivemesh.engine.processes import Processes, signal_number
from hivemesh.engine.service import PodmanService

__all__ = ["HostNeeds", "PodmanEngine", "host_needs"]

log = logging.getLogger("hivemesh.engine")

LOCAL_ONLY = "localhost/"
"""Podman's name for images made on this machine: no registry has them, and asking for one takes seconds."""
ATTEMPTS = 4
REMOVALS = 5
IMPROPER = "container state improper"
"""Podman's word for a container that has ended and is still being tidied up: a moment later it can be removed."""
PARALLEL_STARTS = 4
"""Starting is work for the processor (runc, conmon); more at once only makes each of them later."""
EXIT_TIMEOUT = 15.0
"""Seconds for the exit code after the process has ended; conmon writes it, unless somebody killed conmon too."""
KILL_TIMEOUT = 10.0
OUTPUT_KEPT = 64 * 1024
"""Bytes of what a command in a container writes; the rest is read and dropped, so that it does not stand still."""
UNKNOWN_EXIT = -1
DISCARDED = "discarded"
"""In Podman's warnings: a limit that the kernel does not have, and that it would leave out."""
NO_LIMIT = aiohttp.ClientTimeout(total=None)


class _Answer(NamedTuple):
    status: int
    body: bytes


class PodmanEngine:
    """Implements `Engine`."""

    def __init__(self, service: PodmanService) -> None:
        self._service = service
        self._processes = Processes()
        self._session: aiohttp.ClientSession | None = None
        self._starts = asyncio.Semaphore(PARALLEL_STARTS)
        self._info: EngineInfo | None = None
        self._references: dict[str, str] = {}  # image as asked for, to the name it has here

    async def info(self) -> EngineInfo:
        if self._info is None:
            self._info = EngineInfo(name="podman", version=await self._service.version())
        return self._info

    async def ensure_image(self, image: str, credential: str = "") -> None:
        for reference in (image, docker_reference(image)):
            if await self._has_image(reference):
                self._references[image] = reference
                return
        reference = docker_reference(image)
        if reference.startswith(LOCAL_ONLY):
            answer = await self._call("GET", f"/images/{quote(reference, safe='')}/json", fine=(404,))
            raise ImageNotFound(words_of(answer.body, answer.status))
        query = {"reference": reference, "policy": "missing", "quiet": "true"}
        try:
            answer = await self._call("POST", "/images/pull", query=query, credential=credential)
        except EngineError as error:
            raise ImageNotFound(str(error)) from None
        for line in answer.body.splitlines():
            problem = msgspec.json.decode(line, type=PullLine).error if line.strip() else ""
            if problem:
                raise ImageNotFound(problem)
        self._references[image] = reference

    async def describe(self, image: str) -> ImageFacts:
        for reference in dict.fromkeys((self._references.get(image, image), docker_reference(image))):
            answer = await self._call("GET", f"/images/{quote(reference, safe='')}/json", fine=(404,))
            if answer.status != 404:
                return msgspec.json.decode(answer.body, type=Image).facts
        return ImageFacts()

    async def create(self, request: ContainerRequest) -> str:
        async with prepared(request, self._call, self._image_here) as found, self._starts:
            try:
                answer = await self._call("POST", "/containers/create", body=create_body(request, found))
            except EngineError:
                existing = await self._inspect(request.name)
                if existing and info_of(existing).labels.get(TASK_LABEL) == request.labels.get(TASK_LABEL):
                    return existing.id
                raise
        made = msgspec.json.decode(answer.body, type=Created)
        lost = [words for words in made.warnings or () if DISCARDED in words.lower()]
        if lost:
            await self.remove(made.id)
            raise EngineError(f"this machine cannot do all that was asked: {'; '.join(lost)}")
        return made.id

    async def start(self, container: str) -> ContainerInfo:
        async with self._starts:
            await self._call("POST", f"/containers/{container}/start", fine=(304,))
        found = await self._inspect(container)
        if found is None:
            raise EngineError(f"container {container[:12]} was removed while it started")
        info = info_of(found)
        if info.state == "running":
            self._processes.watch(info.id, info.pid)
        return info

    async def ended(self, container: str) -> None:
        if not self._processes.running(container):
            found = await self._inspect(container)
            if found is None:
                return
            info = info_of(found)
            if info.state == "running":
                self._processes.watch(container, info.pid)
        await self._processes.wait(container)

    async def wait(self, container: str) -> int:
        await self.ended(container)
        query = {"condition": ["stopped", "exited"], "interval": "10ms"}
        try:
            async with asyncio.timeout(EXIT_TIMEOUT):
                answer = await self._call("POST", f"/containers/{container}/wait", query=query, fine=(404,))
        except TimeoutError:
            return UNKNOWN_EXIT
        return UNKNOWN_EXIT if answer.status == 404 else int(answer.body)

    async def run(self, container: str, command: Sequence[str], timeout: float) -> Ran:
        body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
        answer = await self._call("POST", f"/containers/{container}/exec", body=body)
        session = str(msgspec.json.decode(answer.body)["Id"])
        start = self._call("POST", f"/exec/{session}/start", body={"Detach": False}, keep=OUTPUT_KEPT)
        running = asyncio.ensure_future(start)
        try:
            async with asyncio.timeout(timeout):
                answer = await asyncio.shield(running)
        except TimeoutError:
            await self._kill_command(session)
            raise
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        ended = await self._session_of(session)
        return Ran(code=ended.exit_code, output=demultiplexed(answer.body).decode(errors="replace"))

    async def stop(self, container: str, signal: str, grace: float) -> None:
        found = await self._inspect(container)
        if found is not None and info_of(found).state == INITIALIZED:
            await self._call("POST", f"/containers/{container}/stop", query={"timeout": "0"}, fine=(304, 404))
            return
        if found is None or info_of(found).state != "running" or not self._processes.watch(container, found.state.pid):
            return
        try:
            gently = signal_number(signal, default=found.config.stop_signal or SIGTERM)
        except ValueError:
            gently = SIGTERM
        for number, patience in ((gently, grace), (SIGKILL, KILL_TIMEOUT)):
            self._processes.send(container, number)
            try:
                async with asyncio.timeout(patience):
                    await self._processes.wait(container)
                return
            except TimeoutError:
                continue
        raise EngineError(f"container {container[:12]} does not end, not even by SIGKILL: is it paused?")

    async def remove(self, container: str) -> None:
        query = {"force": "true", "v": "true", "timeout": "0"}
        for attempt in range(1, REMOVALS + 1):
            try:
                await self._call("DELETE", f"/containers/{container}", query=query, fine=(404,))
                break
            except EngineError as error:
                if IMPROPER not in str(error) or attempt == REMOVALS:
                    raise
            await asyncio.sleep(0.1 * attempt)
        self._processes.forget(container)

    async def list(self, label: str = TASK_LABEL) -> list[ContainerInfo]:
        filters = msgspec.json.encode({"label": [label]}).decode()
        answer = await self._call("GET", "/containers/json", query={"all": "true", "sync": "true", "filters": filters})
        found = [info_of_listed(c) for c in msgspec.json.decode(answer.body, type=list[Listed] | None) or []]
        for info in found:
            if info.state == "running":
                self._processes.watch(info.id, info.pid)
        return found

    async def logs(self, container: str, options: LogOptions) -> AsyncIterator[Output]:
        query = {
            "stdout": str(options.stdout).lower(),
            "stderr": str(options.stderr).lower(),
            "follow": str(options.follow).lower(),
            "tail": "all" if options.tail < 0 else str(options.tail),
            "timestamps": "true",
        }
        if options.since:
            query["since"] = f"{options.since:.9f}"
        socket = await self._service.ready()
        connector = aiohttp.UnixConnector(str(socket), force_close=True)
        try:
            async with aiohttp.ClientSession("http://podman", connector=connector, timeout=NO_LIMIT) as session:
                async with session.get(f"{PREFIX}/containers/{container}/logs", params=query) as answer:
                    if answer.status >= 300:
                        raise EngineError(words_of(await answer.read(), answer.status))
                    while True:
                        head = await answer.content.readexactly(8)
                        yield output_of(head[0], await answer.content.readexactly(int.from_bytes(head[4:], "big")))
        except asyncio.IncompleteReadError:
            return
        except aiohttp.ClientError as error:
            raise EngineError(f"podman's service broke off: {error}") from error

    async def events(self) -> AsyncIterator[str]:
        queue = self._processes.listen()
        try:
            while True:
                yield await queue.get()
        finally:
            self._processes.unlisten(queue)

    async def close(self) -> None:
        self._processes.close()
        if self._session:
            await self._session.close()
        await self._service.close()

    async def _session_of(self, session: str) -> ExecSession:
        return msgspec.json.decode((await self._call("GET", f"/exec/{session}/json")).body, type=ExecSession)

    async def _kill_command(self, session: str) -> None:
        """Podman has no call for this."""
        with contextlib.suppress(EngineError, ProcessLookupError):
            found = await self._session_of(session)
            if found.pid:
                handle = os.pidfd_open(found.pid)
                try:
                    pidfd_send_signal(handle, SIGKILL)
                finally:
                    os.close(handle)

    async def _image_here(self, image: str) -> str:
        if image not in self._references:
            await self.ensure_image(image)
        return self._references[image]

    async def _has_image(self, reference: str) -> bool:
        path = f"/images/{quote(reference, safe='')}/exists"
        return (await self._call("GET", path, fine=(404,))).status != 404

    async def _inspect(self, container: str) -> Inspected | None:
        answer = await self._call("GET", f"/containers/{container}/json", fine=(404,))
        return None if answer.status == 404 else msgspec.json.decode(answer.body, type=Inspected)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Any = None,
        body: Any = None,
        fine: tuple[int, ...] = (),
        keep: int | None = None,
        credential: str = "",
    ) -> _Answer:
        """Raises `EngineError` with the engine's words unless the status is 2xx or `fine`.

        Of the answer `keep` bytes are kept, or all.
        """
        headers = {"X-Registry-Auth": credential} if credential else None
        for attempt in range(1, ATTEMPTS + 1):
            socket = await self._service.ready()
            if self._session is None:
                # A connection per call costs 0.1 ms here and never turns out to be one that the service has closed.
                connector = aiohttp.UnixConnector(str(socket), force_close=True, limit=0)
                timeout = aiohttp.ClientTimeout(total=None)
                self._session = aiohttp.ClientSession("http://podman", connector=connector, timeout=timeout)
            try:
                async with self._session.request(
                    method, PREFIX + path, params=query, json=body, headers=headers
                ) as answer:
                    content = await answer.read() if keep is None else await _beginning(answer.content, keep)
            except aiohttp.ClientError as error:
                if attempt == ATTEMPTS:
                    raise EngineError(f"podman's service broke off: {error}") from error
                await asyncio.sleep(0.05 * attempt)
                continue
            if answer.status >= 300 and answer.status not in fine:
                raise EngineError(words_of(content, answer.status))
            return _Answer(answer.status, content)
        raise AssertionError


async def _beginning(stream: aiohttp.StreamReader, length: int) -> bytes:
    """The first bytes of a stream that is read to its end."""
    found = bytearray()
    async for piece in stream.iter_any():
        found += piece[: length - len(found)]
    return bytes(found)
