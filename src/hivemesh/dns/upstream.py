"""One name server of others, asked by UDP and TCP from the node's namespace or from inside a sandbox.

A forged answer must guess an id and one of a few source ports, both random and changing: questions leave by a small
pool of connected sockets, one of which is drawn for each moment, and each of which is replaced after a while. What
comes in with another id or question is ignored. A server that does not answer is remembered as silent, so that those
who ask next need not wait for it too.

Who asks is called back: futures and tasks would cost more than the question itself.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import cast

from hivemesh.dns.timeouts import Timeouts
from hivemesh.kernel.sockets import inside
from hivemesh.model.addr import Address
from hivemesh.model.errors import Unavailable
from hivemesh.wire.dnsanswer import answers

PATIENCE = 4.0
"""Seconds for a server's answer (Docker)."""
SHORT_PATIENCE = 1.0
"""Seconds for a server that was silent last time, while there are others to ask."""
RESEND = 1.5
"""Seconds after which a question over UDP is sent once more: the first may be lost."""
SILENT_FOR = 30.0
"""Seconds for which a silent server is asked after the others."""
REFUSES_FOR = 2.0
"""The same after the network said that it cannot be reached: learning that again costs nothing."""
PORTS = 8
PORT_AGE = 20.0
"""Seconds after which a socket is replaced by one with another port."""
MOMENT = 0.001
"""Seconds for which questions leave by the socket that was drawn, so that their answers are read together."""
IDLE = 10.0
"""Seconds without a question after which all sockets of a server are closed; they would keep a namespace alive."""
BATCH = 64
"""Answers read from one socket before others have their turn."""
BUFFER = 1 << 20
"""Bytes of answers that may wait in a socket (the kernel allows less where net.core.rmem_max is lower)."""

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class Unanswered(Unavailable):
    """A server gave no answer; the text says why."""


Told = Callable[[bytes | Unanswered], None]


class Server:
    """A name server, seen from one namespace (`netns`, a path; "" is our own)."""

    def __init__(
        self,
        address: Address,
        netns: str = "",
        *,
        port: int = 53,
        patience: float = PATIENCE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self.patience = patience
        self._netns = netns
        self._port = port
        self._now = now
        self._ports: list[_Port] = []
        self._drawn: _Port | None = None
        self._draw_at = 0.0
        self._retired: set[_Port] = set()
        self._stream: _Stream | None = None
        self._dial_in_turn = asyncio.Lock()
        self.dialling: set[asyncio.Task[None]] = set()
        """Questions over TCP under way."""
        self._timeouts = Timeouts(_Waiting.late)
        self.answered = 0
        """How many answers it has given."""
        self._avoid_until = 0.0
        self._silent = False
        self._idle: asyncio.TimerHandle | None = None
        self._last_question = 0.0
        self._closed = False

    def __str__(self) -> str:
        return f"{self.address}" + (" from inside the sandbox" if self._netns else "")

    @property
    def avoided(self) -> bool:
        """Whether others should be asked first."""
        return self._now() < self._avoid_until

    def ask(self, query: bytes, end: int, told: Told, *, tcp: bool, others: bool) -> None:
        """`told` is called once, now or later, with the answer, whose id means nothing. The question ends at `end`.

        `others`: there is someone else to ask, so waiting may be short.
        """
        if self._closed:
            told(Unanswered(f"{self} is no longer asked"))
            return
        patience = min(SHORT_PATIENCE, self.patience) if self._silent and others else self.patience
        self._last_question = now = time.monotonic()
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self._close_if_idle)
        waiting = _Waiting(self, query, end, patience, told)
        if tcp:
            asking = asyncio.get_running_loop().create_task(self._ask_by_tcp(waiting))
            self.dialling.add(asking)
            asking.add_done_callback(self.dialling.discard)
            return
        try:
            self._pick_port(now).send(waiting)
        except OSError as error:
            waiting.end_with(error)
        else:
            self.wait_on(waiting, min(RESEND, patience), now)

    def over(self, waiting: "_Waiting", found: bytes | OSError) -> None:
        """A question has its answer, or will have none; the server's fame follows."""
        self._timeouts.drop(waiting, waiting.wait)
        if self._retired:
            port = waiting.port
            if isinstance(port, _Port) and port in self._retired and not port.busy:
                self._retired.discard(port)
                port.close()
        if isinstance(found, bytes):
            self.answered += 1
            self._silent = False
            self._avoid_until = 0.0
            waiting.told(found)
        elif isinstance(found, TimeoutError):
            # it may answer others and only this question takes long: then it is not silent
            if self.answered == waiting.answered_before:
                self._silent = True
                self._avoid_until = self._now() + SILENT_FOR
            waiting.told(Unanswered(f"{self} did not answer within {waiting.patience:g} s"))
        else:
            self._avoid_until = self._now() + REFUSES_FOR
            waiting.told(Unanswered(f"{self} cannot be asked: {found.strerror or found}"))

    def wait_on(self, waiting: "_Waiting", seconds: float, now: float) -> None:
        """A part of its patience."""
        waiting.wait = seconds
        waiting.rest -= seconds
        self._timeouts.add(waiting, seconds, now)

    def close(self) -> None:
        """Close every socket now; whoever waits gets `Unanswered`."""
        self._closed = True
        self._close_sockets()

    def _close_sockets(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        for port in (*self._ports, *self._retired):
            port.close()
        self._ports.clear()
        self._drawn = None
        self._retired.clear()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _close_if_idle(self) -> None:
        self._idle = None
        rest = self._last_question + max(IDLE, 2 * self.patience) - time.monotonic()
        if rest > 0:
            self._idle = asyncio.get_running_loop().call_later(rest, self._close_if_idle)
        else:
            self._close_sockets()

    # --- UDP ------------------------------------------------------------------------------------------------------

    def _pick_port(self, now: float) -> "_Port":
        port = self._drawn
        if port is None or now >= self._draw_at or now >= port.until:
            port = self._drawn = self._draw_port(now)
            self._draw_at = now + MOMENT
        return port

    def _draw_port(self, now: float) -> "_Port":
        if not self._ports:
            self._ports = self._open_ports(PORTS, now)
        index = _luck.draw() % len(self._ports)
        port = self._ports[index]
        if now >= port.until:
            (fresh,) = self._open_ports(1, now)
            self._ports[index] = fresh
            if port.busy:
                self._retired.add(port)
            else:
                port.close()
            return fresh
        return port

    def _open_ports(self, count: int, now: float) -> list["_Port"]:
        def connect() -> list[socket.socket]:
            made: list[socket.socket] = []
            try:
                for _ in range(count):
                    sock = self._socket(socket.SOCK_DGRAM)
                    made.append(sock)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                    sock.connect(self._target())  # the kernel picks the source port, at random
            except BaseException:
                for sock in made:
                    sock.close()
                raise
            return made

        sockets = inside(self._netns, connect) if self._netns else connect()
        # replaced one by one, not all in one moment
        return [_Port(sock, now + PORT_AGE * (index + 1) / count) for index, sock in enumerate(sockets)]

    def _socket(self, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def _target(self) -> _SocketAddress:
        if self.address.version == 4:
            return str(self.address), self._port
        scope = getattr(self.address, "scope_id", None)
        index = 0
        if scope:
            index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
        return str(self.address).partition("%")[0], self._port, 0, index

    # --- TCP ------------------------------------------------------------------------------------------------------

    async def _ask_by_tcp(self, waiting: "_Waiting") -> None:
        try:
            async with asyncio.timeout(waiting.patience):
                waiting.end_with(await self._answer_by_tcp(waiting))
        except OSError as error:  # a timeout is one
            waiting.end_with(error)

    async def _answer_by_tcp(self, waiting: "_Waiting") -> bytes:
        while True:
            async with self._dial_in_turn:
                stream = self._stream
                reused = stream is not None and stream.open
                if stream is None or not stream.open:
                    stream = self._stream = await self._dial()
            try:
                return await stream.ask(waiting)
            except ConnectionError:
                if not reused:  # a server may close what it thinks is idle just when we ask (RFC 7766, 6.2.4)
                    raise

    async def _dial(self) -> "_Stream":
        def prepare() -> tuple[socket.socket, _SocketAddress]:
            return self._socket(socket.SOCK_STREAM), self._target()

        sock, target = inside(self._netns, prepare) if self._netns else prepare()
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, target)
            _, stream = await loop.create_connection(_Stream, sock=sock)
        except BaseException:
            sock.close()
            raise
        if self._closed:
            stream.close()
            raise ConnectionAbortedError("no longer asked")
        return stream


class _Luck:
    """Random numbers of the kernel, fetched many at once: a call for each costs as much as half a question."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def draw(self) -> int:
        """16 bits."""
        if not self._numbers:
            self._numbers = memoryview(os.urandom(1024)).cast("H").tolist()
        return self._numbers.pop()


_luck = _Luck()


class _Waiting:
    """A question on its way."""

    __slots__ = (
        "_over", "_server", "answered_before", "end", "id", "packet", "patience", "port", "rest", "told", "wait",
    )  # fmt: skip

    def __init__(self, server: Server, query: bytes, end: int, patience: float, told: Told) -> None:
        self._server = server
        self._over = False
        self.told = told
        self.end = end
        self.packet = query
        self.patience = self.rest = patience
        self.wait = 0.0
        self.answered_before = server.answered
        self.id = 0
        self.port: _Questions | None = None

    def late(self) -> None:
        """Sent once more after a while, and given up in the end."""
        if self.rest > 0 and isinstance(self.port, _Port):
            self.port.send_again(self)
            self._server.wait_on(self, self.rest, time.monotonic())
        else:
            self.end_with(TimeoutError())

    def end_with(self, found: bytes | OSError) -> None:
        """The first one counts."""
        if not self._over:
            self._over = True
            if self.port is not None:
                self.port.forget(self)
            self._server.over(self, found)


class _Questions:
    """The questions out by one socket, by their ids."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, waiting: _Waiting) -> None:
        """Give it an id. Raises `OSError`: there are too many."""
        if len(self._waiting) > 32768:
            raise OSError("too many questions are unanswered")
        while (ident := _luck.draw()) in self._waiting:
            pass
        waiting.id = ident
        waiting.packet = ident.to_bytes(2) + waiting.packet[2:]
        waiting.port = self
        self._waiting[ident] = waiting

    def forget(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting.id, None)

    def arrived(self, message: bytes) -> None:
        """Hand an answer to who waits for it; anything else is ignored."""
        waiting = self._waiting.get(int.from_bytes(message[:2]))
        if waiting is not None and answers(message, waiting.packet, waiting.end):
            self.heard(waiting, message)

    def heard(self, waiting: _Waiting, found: bytes | OSError) -> None:
        waiting.end_with(found)

    def fail(self, error: OSError) -> None:
        for waiting in list(self._waiting.values()):
            self.heard(waiting, error)


class _Port(_Questions):
    """A connected UDP socket."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        super().__init__()
        self.until = until
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._read)

    def send(self, waiting: _Waiting) -> None:
        """Raises `OSError`."""
        self.add(waiting)
        try:
            self._sock.send(waiting.packet)
        except BlockingIOError:  # no room: as if lost on the way
            pass
        except OSError:  # it may be an earlier question's, refused just now
            with contextlib.suppress(BlockingIOError):
                self._sock.send(waiting.packet)

    def send_again(self, waiting: _Waiting) -> None:
        with contextlib.suppress(OSError):
            self._sock.send(waiting.packet)

    def _read(self) -> None:
        for _ in range(BATCH):
            try:
                message = self._sock.recv(65535)
            except BlockingIOError:
                return
            except OSError as error:  # ICMP: the port is closed, or the host cannot be reached
                self.fail(error)
                return
            self.arrived(message)
            if not self._waiting:
                return  # nothing more is expected, and a look that finds nothing costs as much as one that does

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self.fail(ConnectionAbortedError("no longer asked"))


class _Stream(_Questions, asyncio.Protocol):
    """A TCP connection with many questions on it, answered in any order (RFC 7766, 6.2.1.1 and 7)."""

    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answers: dict[int, asyncio.Future[bytes]] = {}

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, waiting: _Waiting) -> bytes:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self.add(waiting)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[waiting.id] = answer
        self._transport.write(len(waiting.packet).to_bytes(2) + waiting.packet)
        try:
            return await answer
        finally:
            self.forget(waiting)
            del self._answers[waiting.id]

    def heard(self, waiting: _Waiting, found: bytes | OSError) -> None:
        """Who asked decides what to make of it: a connection may be worth a second try."""
        answer = self._answers[waiting.id]
        if answer.done():
            return
        if isinstance(found, bytes):
            answer.set_result(found)
        else:
            answer.set_exception(found)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 2:
            end = at + 2 + int.from_bytes(buffer[at : at + 2])
            if end > len(buffer):
                break
            self.arrived(bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc if isinstance(exc, ConnectionError) else ConnectionResetError("the connection was closed"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
