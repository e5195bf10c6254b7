"""Containers, images and volumes are the engine's: what concerns them is passed on, streams included.

Two ways through. An ordinary request is forwarded message by message, both bodies streamed. `attach` and `exec` take
over their connection ("hijack"): after the answer's head both sides send raw bytes, and closing one direction (the end
of standard input) must leave the other open, which HTTP libraries do not do. For these the client's connection is taken
out of the HTTP server's hands and the bytes are pumped.
"""

import asyncio
import json
import logging
import re
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from hivemesh.api.http import local_of
from hivemesh.model.errors import HivemeshError, NotFound, Unavailable, Unsupported
from hivemesh.wire import codec
from hivemesh.wire.engine import strict

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

VERSION = re.compile(r"^/v(\d+)\.(\d+)(?=/)")
HEAD_LIMIT = 64 * 1024
CHUNK = 64 * 1024
REMOVAL_INTERVAL = 0.05
REMOVAL_LOOKS = 200
"""How long an ended container may take to be removed: ten seconds, Docker's own grace."""
UPGRADED = (
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)
TAKEN_OVER = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
GONE_CHECK = 1.0
"""Seconds between looks whether a client that closed its input is still there."""

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}
OURS = {
    "server",
    "api-version",
    "ostype",
    "docker-experimental",
    "libpod-api-version",
    "libpod-buildah-version",
    "date",
}
ANSWERED_ANEW = HOP_BY_HOP | OURS | {"content-length"}
HIJACKED = re.compile(r"/(containers/[^/]+/attach|exec/[^/]+/start|containers/[^/]+/attach/ws)$")


class Engine:
    """The way to the engine's own API: its socket, and the version it speaks."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._path: Path | None = None
        self._version: tuple[int, int] | None = None

    async def socket(self, request: web.Request) -> Path:
        """Raises `Unsupported` when this node's engine has no containers of its own, `Unavailable` when it is down."""
        path = await local_of(request).engine_socket()
        if path is None:
            raise Unsupported("this node runs the process engine, which has no containers, images or volumes")
        return path

    async def session(self, path: Path) -> aiohttp.ClientSession:
        """A connection per request: the engine's service comes and goes, and idle connections would keep it alive."""
        if self._session is None or self._path != path:
            await self.close()
            connector = aiohttp.UnixConnector(str(path), limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
            self._path, self._version = path, None
        return self._session

    async def path_for(self, request: web.Request, session: aiohttp.ClientSession) -> str:
        """The request's path and query, with a version the engine speaks."""
        if self._version is None:
            async with session.get("http://engine/_ping") as reply:
                major, _, minor = reply.headers.get("Api-Version", "1.40").partition(".")
                self._version = int(major), int(minor)
        path, version = request.raw_path, self._version
        if found := VERSION.match(path):
            version = min(version, (int(found[1]), int(found[2])))
            path = path[found.end() :]
        return f"/v{version[0]}.{version[1]}{path}"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


ENGINE = web.AppKey("engine", Engine)


def setup(app: web.Application) -> None:
    app[ENGINE] = Engine()

    async def close(app: web.Application) -> None:
        await app[ENGINE].close()

    app.on_cleanup.append(close)


@asynccontextmanager
async def engine_errors() -> AsyncIterator[None]:
    """A broken conversation with the engine, in words."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(
            f"the engine's API cannot be reached: {error.os_error.strerror}; is podman running?"
        ) from error
    except (aiohttp.ClientError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"the engine's API broke off: {error or type(error).__name__}; try again") from error


async def ask(request: web.Request, path: str, *, method: str = "GET", body: Any = None, version: str = "v1.40") -> Any:
    """The engine's answer, decoded when it is JSON; `path` has no version, and `body` is sent as JSON.

    Raises `NotFound` or `Unavailable` in the engine's words.
    """
    engine = request.app[ENGINE]
    async with engine_errors():
        session = await engine.session(await engine.socket(request))
        data = None if body is None else codec.to_json(body)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with session.request(method, f"http://engine/{version}{path}", data=data, headers=headers) as reply:
            raw = await reply.read()
            value = strict.decode(raw) if reply.content_type == "application/json" else raw.decode(errors="replace")
            if reply.status >= 400:
                text = str(value.get("message", reply.reason)) if isinstance(value, dict) else str(reply.reason)
                raise (NotFound if reply.status == 404 else Unavailable)(text)
            return value


@asynccontextmanager
async def stream(request: web.Request, path: str) -> AsyncIterator[aiohttp.StreamReader]:
    """The engine's answer to `GET path`, as it comes."""
    engine = request.app[ENGINE]
    async with engine_errors():
        session = await engine.session(await engine.socket(request))
        async with session.get(f"http://engine/v1.40{path}") as reply:
            if reply.status >= 400:
                raise Unavailable(f"the engine refused {path}: {(await reply.text()).strip()}")
            yield reply.content


async def forward(request: web.Request, body: bytes | None = None) -> web.StreamResponse:
    """Hand the request to the engine and its answer back; `body` where the caller has read it already."""
    engine = request.app[ENGINE]
    socket = await engine.socket(request)
    async with engine_errors():
        session = await engine.session(socket)
        path = await engine.path_for(request, session)
        if HIJACKED.search(request.path):
            body = await request.read()
            if _takes_over(request, body):
                return await _hijack(request, body, socket, path)
        async with session.request(
            request.method,
            f"http://engine{path}",
            headers=_end_to_end(request.headers) | {"Host": "engine"},
            data=body if body is not None else request.content if request.body_exists else None,
            allow_redirects=False,
        ) as reply:
            return await _relay(request, reply)


async def exchange(request: web.Request, body: bytes | None = None) -> web.Response:
    """As `forward`, with the whole answer in hand: for answers that are short, and looked at or changed."""
    engine = request.app[ENGINE]
    async with engine_errors():
        session = await engine.session(await engine.socket(request))
        path = await engine.path_for(request, session)
        headers = _end_to_end(request.headers) | {"Host": "engine"}
        if body is not None:
            headers = {key: value for key, value in headers.items() if key.lower() != "content-length"}
        data = body if body is not None else await request.read()
        async with session.request(
            request.method, f"http://engine{path}", headers=headers, data=data or None, allow_redirects=False
        ) as reply:
            kept = {key: value for key, value in reply.headers.items() if key.lower() not in ANSWERED_ANEW}
            return web.Response(status=reply.status, reason=reply.reason, headers=kept, body=await reply.read())


async def _relay(request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = CIMultiDict((key, value) for key, value in reply.headers.items() if key.lower() not in HOP_BY_HOP | OURS)
    response = web.StreamResponse(status=reply.status, reason=reply.reason, headers=headers)
    await response.prepare(request)  # flushes the head: followers of logs and events wait for it
    if request.method != "HEAD":
        async for chunk in reply.content.iter_any():
            await response.write(chunk)
    await response.write_eof()
    return response


def _end_to_end(headers: Any) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() not in HOP_BY_HOP | {"host", "expect"}}


# --- hijacked connections ---------------------------------------------------------------------------------------


def _takes_over(request: web.Request, body: bytes) -> bool:
    """Whether the connection will carry raw bytes after the answer's head."""
    if "/exec/" not in request.path or request.headers.get("Upgrade"):
        return True
    options = strict.decode(body) if body else {}
    return not (isinstance(options, dict) and strict.pick(options, "Detach"))


async def _hijack(request: web.Request, body: bytes, socket: Path, path: str) -> web.StreamResponse:
    reader, writer = await asyncio.open_unix_connection(socket, limit=HEAD_LIMIT)
    try:
        kept = [
            f"{key}: {value}\r\n"
            for key, value in request.headers.items()
            if key.lower() not in {"host", "content-length", "transfer-encoding", "expect"}
        ]
        head = f"{request.method} {path} HTTP/1.1\r\nHost: engine\r\n{''.join(kept)}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode("latin-1") + body)
        top = await reader.readuntil(b"\r\n\r\n")
        status, headers = _parse_head(top)
        length = headers.get("Content-Length")
        if length is None and status in (101, 200) and "Transfer-Encoding" not in headers:
            client_reader, client_writer = _take_over(request)
            client_writer.write(top)
            await _pump(client_reader, client_writer, reader, writer)
            return _Done()
        rest = await (reader.readexactly(int(length)) if length is not None else reader.read())
        kept_headers = {key: headers[key] for key in ("Content-Type",) if key in headers}
        return web.Response(status=status, body=rest, headers=kept_headers)
    finally:
        writer.close()


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Answer as the engine does to a client that takes over its connection, and say no more."""
    _, writer = _take_over(request)
    writer.write(UPGRADED if request.headers.get("Upgrade") else TAKEN_OVER)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return _Done()


def _parse_head(head: bytes) -> tuple[int, CIMultiDict[str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip()] = value.strip()
    return int(first.split()[1]), headers


class _Done(web.StreamResponse):
    """An answer that has been given already, on a connection that is no longer HTTP."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _Taken(asyncio.StreamReaderProtocol):
    """Raw bytes from here on; the HTTP server still learns when the connection ends, and forgets it."""

    def __init__(self, reader: asyncio.StreamReader, before: asyncio.Protocol) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self._before = before

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._before.connection_lost(exc)


def _take_over(request: web.Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop, transport = asyncio.get_running_loop(), request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")

    reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
    protocol = _Taken(reader, request.protocol)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if not transport.is_reading():
        transport.resume_reading()
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _pump(
    client_reader: asyncio.StreamReader,
    client_writer: asyncio.StreamWriter,
    engine_reader: asyncio.StreamReader,
    engine_writer: asyncio.StreamWriter,
) -> None:
    """Both directions until the engine has said everything, or the client is gone."""

    async def upload() -> None:
        with suppress(ConnectionError):
            await _copy(client_reader, engine_writer)
        await _until_hung_up(client_writer)

    async def download() -> None:
        with suppress(ConnectionError):
            await _copy(engine_reader, client_writer)

    both = [asyncio.create_task(upload(), name="upload"), asyncio.create_task(download(), name="download")]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        client_writer.close()
        with suppress(ConnectionError):
            await client_writer.wait_closed()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


async def _until_hung_up(writer: asyncio.StreamWriter) -> None:
    """The end of a client's input is no goodbye; both directions closed is, and no event tells an idle reader."""
    socket = writer.get_extra_info("socket")
    poll = select.poll()
    while not writer.is_closing() and (descriptor := socket.fileno()) >= 0:
        poll.register(descriptor, 0)
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
            return
        await asyncio.sleep(GONE_CHECK)


# --- routes -----------------------------------------------------------------------------------------------------


@routes.post("/containers/{ref}/wait")
async def wait(request: web.Request) -> web.StreamResponse:
    """As the engine answers, but for `condition=removed`, where Podman 4 forgets the exit code (`docker run --rm`).

    There the next exit is waited for, which has the code, then the removal; the events know the code of a container
    that was gone before anybody looked. The head of the answer goes out at once: clients start only when they have it.
    """
    if request.query.get("condition") != "removed":
        return await forward(request)
    ref = request.match_info["ref"]
    identifier, begun = (await ask(request, f"/containers/{ref}/json"))["Id"], local_of(request).clock.now()
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        result = await ask(request, f"/containers/{identifier}/wait?condition=next-exit", method="POST")
        await _removal(request, identifier)
    except HivemeshError:
        result = await _exit_from_events(request, identifier, begun)
    await response.write(codec.to_json(result) + b"\n")
    await response.write_eof()
    return response


async def _exit_from_events(request: web.Request, identifier: str, since: float) -> dict[str, Any]:
    query = urlencode({"since": int(since) - 1, "stream": "false", "filters": json.dumps({"container": [identifier]})})
    with suppress(HivemeshError):
        async with stream(request, f"/events?{query}") as content:
            async for line in content:
                event = strict.decode(line)
                if event["Action"] == "die":
                    return {"StatusCode": int(event["Actor"]["Attributes"].get("exitCode", -1))}
    return {"StatusCode": -1, "Error": {"Message": f"container {identifier} went away without an exit code"}}


async def _removal(request: web.Request, ref: str) -> None:
    for _ in range(REMOVAL_LOOKS):
        try:
            await ask(request, f"/containers/{ref}/json")
        except NotFound:
            return
        await asyncio.sleep(REMOVAL_INTERVAL)


async def _forward(request: web.Request) -> web.StreamResponse:
    return await forward(request)


for _path in (
    r"/containers/{rest:.+}",
    r"/images/{rest:.+}",
    r"/exec/{rest:.+}",
    r"/volumes",
    r"/volumes/{rest:.+}",
    r"/build",
    r"/build/{rest:.+}",
    r"/commit",
    r"/session",
    r"/plugins",
    r"/plugins/{rest:.+}",
):
    routes.route("*", _path)(_forward)
