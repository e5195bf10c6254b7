"""The door of the cluster port: how much of this manager strangers may take up. Who shows a certificate is no stranger.

Anybody can connect, since a node that joins has no certificate yet. So a stranger gets `PATIENCE` seconds and is one of
`STRANGERS` at most. When there are more, the oldest of those who come from the same place as most others has to go:
whoever floods the port from a few places drives out himself, and a member that comes back still gets in.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable

from hivemesh.clock import Clock
from hivemesh.model.errors import Unavailable

log = logging.getLogger("hivemesh.server")

STRANGERS = 256
"""Connections without a certificate, those that are shaking hands included; each takes some 100 kB."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds; it takes two round trips and a millisecond of arithmetic."""
PATIENCE = 30.0
"""Seconds of a stranger's connection: to ask for the CA, or to join. Twice what a node gives its own call."""
JOINS, JOINS_PER_SECOND = 200, 10.0
"""Nodes that may join at once, and how fast that many may join again: every one of them stays in the store."""
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE = 0.5
"""Seconds until we look again when the machine has no room for a connection."""


class Door:
    """Lets callers in to `serve`, which makes the protocol of one connection."""

    def __init__(
        self,
        serve: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        *,
        strangers: int = STRANGERS,
        patience: float = PATIENCE,
    ) -> None:
        self._serve = serve
        self._context = context
        self._most = strangers
        self._patience = patience
        self._strangers: dict[asyncio.Task[None], str] = {}  # to where each comes from; the oldest first

    async def run(self, listeners: Iterable[socket.socket]) -> None:
        """Until cancelled; connections of members live on then."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for listener in listeners:
                    listener.setblocking(False)
                    tasks.create_task(self._accept(listener))
        finally:
            for stranger in self._strangers:
                stranger.cancel()
            await asyncio.gather(*self._strangers, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in FULL:
                    log.warning("no room for another connection: %s", error.strerror)
                    await asyncio.sleep(PAUSE)
                continue  # else the caller has gone already
            if len(self._strangers) >= self._most:
                self._make_room()
            stranger = loop.create_task(self._receive(sock))
            self._strangers[stranger] = _place(address[0])
            stranger.add_done_callback(lambda done: self._strangers.pop(done, None))
            await asyncio.sleep(0)  # it begins: only then does cancelling it close the socket

    def _make_room(self) -> None:
        place, _ = Counter(self._strangers.values()).most_common(1)[0]
        oldest = next(stranger for stranger, origin in self._strangers.items() if origin == place)
        del self._strangers[oldest]
        oldest.cancel()

    async def _receive(self, sock: socket.socket) -> None:
        """A connection, until its caller has shown a certificate or has had its time."""
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(self._patience):
                transport, _ = await loop.connect_accepted_socket(
                    self._serve, sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
                )
                if not transport.get_extra_info("peercert"):
                    await asyncio.Event().wait()
        except (asyncio.CancelledError, TimeoutError) as error:
            if transport is not None:
                transport.abort()
            else:  # whatever has it by now sees its end
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            if not isinstance(error, TimeoutError):
                raise
        except OSError:  # ssl.SSLError is one: a certificate that is not ours, or no TLS
            pass


class Pace:
    """So many at once, and then so many a second."""

    def __init__(self, clock: Clock, most: int = JOINS, rate: float = JOINS_PER_SECOND) -> None:
        self._clock = clock
        self._most = most
        self._rate = rate
        self._left, self._at = float(most), clock.steady()

    def take(self) -> None:
        """Raises `Unavailable` when it is too much."""
        now = self._clock.steady()
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            raise Unavailable(f"more than {self._most} nodes join at once: try again in a few seconds")
        self._left -= 1


def _place(address: str) -> str:
    """What one caller can choose freely is one place: an IPv6 network has at least a /64."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))
