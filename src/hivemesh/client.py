"""An asynchronous client of our own API, over a unix socket or plain TCP.

Small on purpose: the command line starts in a fraction of the time that an HTTP library takes to load. One connection
per request; what the API sends in pieces (events) is yielded as it comes.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import msgspec

from hivemesh.model.errors import (
    Conflict,
    Forbidden,
    HivemeshError,
    Invalid,
    NotFound,
    OutOfSequence,
    Unavailable,
    Unsupported,
)

DEFAULT_HOST = "unix:///run/hivemesh/docker.sock"
VARIABLES = ("HIVEMESH_HOST", "DOCKER_HOST")
"""Environment variables that name the API's place; the first that is set wins."""

API = "/v1.51"
CONNECT_PATIENCE = 10.0

ERRORS: dict[int, type[HivemeshError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    501: Unsupported,
    503: Unavailable,
}


class Failed(HivemeshError):
    """The server failed in a way that no request of ours can mend."""


def host_from(environment: Mapping[str, str]) -> str:
    """Where the API is, by the environment, else the daemon's own socket."""
    return next((environment[name] for name in VARIABLES if environment.get(name)), DEFAULT_HOST)


@dataclass(frozen=True, slots=True)
class Unix:
    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class Tcp:
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"


def parse_host(text: str) -> Unix | Tcp:
    """`unix:///path` or `tcp://host:port`. Raises `Invalid`."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        return Unix(rest)
    if separator and scheme in ("tcp", "http"):
        host, _, port = rest.rstrip("/").rpartition(":")
        if host and port.isdecimal() and 0 < int(port) < 65536:
            return Tcp(host.strip("[]"), int(port))
    raise Invalid(f"invalid host {text!r}: expected unix:///path/to/docker.sock or tcp://address:port")


class Client:
    """Requests to one daemon. Values go in and come out as plain dicts and lists, as the API's JSON has them."""

    def __init__(self, host: str | None = None) -> None:
        self.host = parse_host(host if host is not None else host_from(os.environ))

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return await self.request("GET", path, query)

    async def post(self, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        return await self.request("POST", path, query, body)

    async def delete(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return await self.request("DELETE", path, query)

    async def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """The decoded JSON of the answer (None when it has no body). Raises the error its status stands for."""
        async with self._open(method, path, query, body) as (_, chunks):
            data = b"".join([chunk async for chunk in chunks])
            return msgspec.json.decode(data) if data.strip() else None

    async def download(self, path: str) -> bytes:
        """An answer that is no JSON."""
        async with self._open("GET", path, None, None) as (_, chunks):
            return b"".join([chunk async for chunk in chunks])

    async def upload(self, path: str, data: bytes, query: Mapping[str, Any] | None = None) -> Any:
        """As `post`, with a body that is no JSON."""
        return await self.request("POST", path, query, data)

    async def lines(self, path: str, query: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """Each JSON line of a stream, as it comes."""
        async with self._open("GET", path, query, None) as (_, chunks):
            rest = b""
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield msgspec.json.decode(line)

    async def stream(self, path: str, query: Mapping[str, Any] | None = None) -> AsyncIterator[bytes]:
        """The bytes of an answer, in pieces as they come."""
        async with self._open("GET", path, query, None) as (_, chunks):
            async for chunk in chunks:
                yield chunk

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any
    ) -> AsyncIterator[tuple[Mapping[str, str], AsyncIterator[bytes]]]:
        reader, writer = await self._connect()
        try:
            raw = isinstance(body, bytes)
            content = body if raw else b"" if body is None else msgspec.json.encode(body)
            target = API + path + (f"?{urlencode(query)}" if query else "")
            head = [f"{method} {target} HTTP/1.1", "Host: hivemesh", "Connection: close"]
            if body is not None:
                head.append(f"Content-Type: application/{'octet-stream' if raw else 'json'}")
            head.append(f"Content-Length: {len(content)}")
            writer.write("\r\n".join([*head, "", ""]).encode() + content)
            await writer.drain()
            status, headers = await _read_head(reader)
            chunks = _read_body(reader, headers)
            if status >= 400:
                raise _error(status, b"".join([chunk async for chunk in chunks]))
            yield headers, chunks
        except (ConnectionError, asyncio.IncompleteReadError, msgspec.DecodeError, ValueError) as error:
            raise Unavailable(f"the daemon at {self.host} broke off its answer: {error}") from error
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self.host
        try:
            async with asyncio.timeout(CONNECT_PATIENCE):
                if isinstance(host, Unix):
                    return await asyncio.open_unix_connection(host.path)
                return await asyncio.open_connection(host.host, host.port)
        except PermissionError:
            raise Unavailable(
                f"permission denied at {host}: run as root, or as a member of the socket's group"
            ) from None
        except FileNotFoundError:
            hint = "start it with `hivemesh daemon`, or name its socket in HIVEMESH_HOST"
            raise Unavailable(f"no daemon at {host}: {hint}") from None
        except (OSError, TimeoutError) as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            raise Unavailable(f"cannot connect to the daemon at {host}: {why}; is it running?") from None


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first.split()[1]), headers


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while data := await reader.read(64 * 1024):
            yield data


def _error(status: int, data: bytes) -> HivemeshError:
    """The exception that stands for an error answer, with the server's words."""
    try:
        text = str(msgspec.json.decode(data)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        text = data.decode(errors="replace").strip() or f"status {status}"
    if "update out of sequence" in text:
        return OutOfSequence(text)
    return ERRORS.get(status, Failed)(text)
