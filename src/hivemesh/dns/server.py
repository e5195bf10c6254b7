"""The sockets of one sandbox: questions in, answers out. The hot path is `Listener._on_datagrams`.

One loop serves all sandboxes. Each turn takes a bounded number of questions from a socket, so none starves the others.
A question that others answer and that is on its way already, in the very same bytes, costs no more than a ready answer.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import random
from time import monotonic
from typing import Any, NamedTuple, Protocol

from hivemesh.dns.answer import Answers, failure
from hivemesh.dns.tcp import Connection
from hivemesh.kernel.sockets import inside
from hivemesh.log import SparingLog
from hivemesh.wire.dns import MOST_QUERY
from hivemesh.wire.resolver import RESOLVER_ADDRESS, RESOLVER_PORT, Sandbox

BATCH = range(16)
"""Questions taken from a UDP socket before others get their turn."""
MOST_CONNECTIONS = 64
"""TCP connections of one sandbox. One more, and the one silent for longest is closed."""
JOIN_FOR = 0.5
"""Seconds for which clients may join a question on its way; then one asks anew, for there may be other servers now."""
MOST_JOINED = 16_384
MOST_JOINED_EACH = 4_096
"""Clients that may have joined at once, and those of one sandbox; further ones ask for themselves, with bounds of
their own (`hivemesh.dns.forward`)."""
_BUFFER = 1024 * 1024  # asked of the kernel, which doubles it: some 2,000 questions that wait while we are replaced
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; beyond net.core.rmem_max, as root may
_BACKLOG = 128
_NO_FILES_PAUSE = 0.5  # seconds


class Asks(Protocol):
    """What asks other servers (`hivemesh.dns.forward`)."""

    def ready(self, query: bytes, sandbox: Sandbox) -> bytes | None:
        """The answer over UDP if it is at hand, in no time."""
        ...

    def ask(
        self, query: bytes, sandbox: Sandbox, told: Callable[[bytes | None], None], *, tcp: bool = False
    ) -> bytes | None:
        """The answer to a well-formed query, with its id, and no longer than the client takes, if it is known.

        Else `told` gets it, once, now or later; None: nobody answers. Bounds how many questions wait.
        """
        ...


@dataclass
class Shared:
    """What all listeners have in common."""

    forwarder: Asks
    joined: int = 0
    """Clients that joined a question on its way, and were not told its answer yet."""
    udp: int = 0
    tcp: int = 0
    """Questions read."""
    log: SparingLog = field(default_factory=lambda: SparingLog(logging.getLogger("hivemesh.dns")))


class Sockets(NamedTuple):
    """Both in the sandbox's namespace, which lives as long as they do."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def open_sockets(netns: str) -> Sockets:
    """Listen inside the namespace at that path. Raises `OSError`: it is gone, or the port is taken."""

    def make() -> Sockets:
        kind = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with contextlib.ExitStack() as undo:
            udp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | kind))
            with contextlib.suppress(PermissionError):  # then as much as everybody gets
                udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            udp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            tcp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | kind))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of one killed before us linger
            tcp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            tcp.listen(_BACKLOG)
            undo.pop_all()
            return Sockets(udp, tcp)

    return inside(netns, make)


def identity(netns: str) -> tuple[int, int]:
    """Device and inode of a namespace's file: another namespace at the same path has others while we hold the first."""
    found = os.stat(netns)
    return found.st_dev, found.st_ino


class _Crowd:
    """Clients that asked over UDP in the very same bytes, but for the id: one answer is for all of them."""

    __slots__ = ("clients", "same", "sandbox", "told", "until")

    def __init__(self, sandbox: Sandbox, same: bytes, first: tuple[bytes, Any]) -> None:
        self.sandbox = sandbox
        self.same = same
        self.clients = [first]  # ids and addresses
        self.until = monotonic() + JOIN_FOR
        self.told = False


class Listener:
    """Serves one sandbox once started. `sandbox` and `answers` may be replaced at any time."""

    def __init__(self, sandbox: Sandbox, answers: Answers, sockets: Sockets, shared: Shared) -> None:
        self.sandbox = sandbox
        self.answers = answers
        self.sockets = sockets
        self.connections: set[Connection] = set()
        self.finished = asyncio.Event()  # retired, and nothing is under way any more
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._receive, self._send = sockets.udp.recvfrom, sockets.udp.sendto
        self._asked_on = 0  # questions whose answer comes from elsewhere
        self._crowds: dict[bytes, _Crowd] = {}  # by the bytes of the question but its id: the latest
        self._joined = 0
        self._started = self._listening = False
        self._retired = False

    def start(self) -> None:
        """Answer from now on."""
        self._started = True
        self._loop.add_reader(self.sockets.udp.fileno(), self._on_datagrams)
        self._listen(True)
        for connection in list(self.connections):
            connection.start()

    def pause(self) -> None:
        """Take no more questions until `start`; they wait in the sockets."""
        self._started = False
        self._loop.remove_reader(self.sockets.udp.fileno())
        self._listen(False)
        for connection in self.connections:
            connection.pause()

    def retire(self) -> None:
        """Paused, and another process goes on: answer what was asked here, and close as soon as that is done."""
        self._retired = True
        self.sockets.tcp.close()
        for connection in list(self.connections):
            connection.finish()
        self._close_if_done()

    def close(self) -> None:
        """At once: nothing of ours stays in the namespace."""
        if self._started:
            self.pause()
        for connection in list(self.connections):
            connection.close()
        self.sockets.close()

    # --- UDP ------------------------------------------------------------------------------------------------------

    def _on_datagrams(self) -> None:
        receive, send, ready, crowds = self._receive, self._send, self.answers.ready, self._crowds
        kept = self._shared.forwarder.ready
        read = 0
        try:
            for read in BATCH:  # noqa: B007 - counted below
                message, client = receive(MOST_QUERY + 1)
                same = message[2:]
                prepared = ready.get(same)
                if prepared is None:
                    prepared = self.answers.prepare(message)
                    if prepared is None:
                        continue
                if type(prepared) is not bytes:
                    prepared = prepared.tail(random())  # type: ignore[union-attr]
                if prepared:
                    send(message[:2] + prepared, client)
                elif (crowd := crowds.get(same)) is not None and self._may_join(crowd):
                    crowd.clients.append((message[:2], client))
                    self._joined += 1
                    self._shared.joined += 1
                elif (known := kept(message, self.sandbox) or self._ask_for_all(message, same, client)) is not None:
                    send(known, client)
            read += 1
        except BlockingIOError:
            pass  # nothing more to read; or a full device: a datagram may be lost
        except OSError as error:
            self._shared.log.warning("udp", "cannot answer in sandbox %s: %s", self.sandbox.id, error)
        self._shared.udp += read

    def _may_join(self, crowd: "_Crowd") -> bool:
        return (
            monotonic() < crowd.until
            and crowd.sandbox is self.sandbox  # else other servers may be meant
            and self._joined < MOST_JOINED_EACH
            and self._shared.joined < MOST_JOINED
        )

    def _ask_for_all(self, message: bytes, same: bytes, client: Any) -> bytes | None:
        crowd = _Crowd(self.sandbox, same, (message[:2], client))
        known = self._ask(message, partial(self._tell_all, crowd), tcp=False)
        if known is None and not crowd.told:
            self._crowds[same] = crowd
        return known

    def _tell_all(self, crowd: "_Crowd", answer: bytes | None) -> None:
        crowd.told = True
        if self._crowds.get(crowd.same) is crowd:
            del self._crowds[crowd.same]
        send, clients = self._send, crowd.clients
        tail = failure(b"\0\0" + crowd.same) if answer is None else answer[2:]
        for ident, client in clients:
            try:  # noqa: SIM105 - `suppress` costs as much as half of this
                send(ident + tail, client)
            except OSError:  # a full device, or the client is gone: as if lost on the way
                pass
        self._joined -= len(clients) - 1
        self._shared.joined -= len(clients) - 1
        self._was_told()

    # --- TCP ------------------------------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, unread: bytes = b"") -> Connection:
        """A connection of this sandbox; it still has to be started."""
        connection = Connection(sock, self._respond, self._lost, unread=unread)
        self.connections.add(connection)
        return connection

    def _listen(self, on: bool) -> None:
        if on and not self._listening:
            self._loop.add_reader(self.sockets.tcp.fileno(), self._on_connection)
        elif self._listening and not on:
            self._loop.remove_reader(self.sockets.tcp.fileno())
        self._listening = on

    def _on_connection(self) -> None:
        try:
            sock, _ = self.sockets.tcp.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # out of files, most likely: the connection stays where it is and would wake us for ever
            self._shared.log.warning("accept", "cannot take a connection in sandbox %s: %s", self.sandbox.id, error)
            self._listen(False)
            self._loop.call_later(_NO_FILES_PAUSE, self._listen_again)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) >= MOST_CONNECTIONS:
            min(self.connections, key=lambda connection: (connection.busy, connection.last_heard)).close()
        self.adopt(sock).start()

    def _listen_again(self) -> None:
        if self._started:
            self._listen(True)

    def _respond(self, message: bytes) -> bytes | Awaitable[bytes] | None:
        self._shared.tcp += 1
        prepared = self.answers.ready_tcp.get(message[2:])
        if prepared is None and (prepared := self.answers.prepare(message, tcp=True)) is None:
            return None
        if not isinstance(prepared, bytes):
            prepared = prepared.tail(random())
        if prepared:
            return message[:2] + prepared
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def tell(found: bytes | None) -> None:
            if not answer.done():  # the connection may have been closed meanwhile
                answer.set_result(message[:2] + failure(message) if found is None else found)
            self._was_told()

        known = self._ask(message, tell, tcp=True)
        return answer if known is None else known

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._close_if_done()

    # --- both -----------------------------------------------------------------------------------------------------

    def _ask(self, message: bytes, told: Callable[[bytes | None], None], *, tcp: bool) -> bytes | None:
        """The answer of others, if it is known already; else `told` gets it, and ends with `_was_told`."""
        self._asked_on += 1
        try:
            known = self._shared.forwarder.ask(message, self.sandbox, told, tcp=tcp)
        except Exception as error:
            self._shared.log.warning("forward", "asking on failed: %s: %s", type(error).__name__, error)
            told(None)
            return None
        if known is not None:
            self._asked_on -= 1
        return known

    def _was_told(self) -> None:
        self._asked_on -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not (self._asked_on or self.connections):
            self.sockets.close()
            self.finished.set()
