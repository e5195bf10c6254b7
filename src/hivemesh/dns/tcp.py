"""DNS over TCP: many questions over one connection (RFC 7766), each with its length before it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

IDLE = 10.0
"""Seconds after which a connection without a question or a byte taken is closed."""
BATCH = 16
"""Questions answered before others get their turn."""
MOST_ASKING = 100
"""Questions of one connection asked on at a time; further ones wait in the client's socket."""
MOST_UNSENT = 256 * 1024
"""Bytes of answers a client may leave unread before we read on."""
_READ = 16 * 1024

Respond = Callable[[bytes], bytes | Awaitable[bytes] | None]
"""A question to its answer, now or later; None: this is no DNS."""


class Connection:
    """One client. It reads no further while whole questions wait, or too many answers."""

    def __init__(
        self,
        sock: socket.socket,
        respond: Respond,
        closed: Callable[["Connection"], None],
        *,
        unread: bytes = b"",
        idle: float = IDLE,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._respond = respond
        self._closed = closed
        self._unread = bytearray(unread)
        self._unsent = bytearray()
        self._asking: set[asyncio.Future[bytes]] = set()
        self._idle = idle
        self._timer: asyncio.TimerHandle | None = None
        self._reading = self._writing = self._turn_due = False
        self._ended = False  # the client sends no more, or we do not want to know
        self._paused = True
        self._open = True
        self.last_heard = self._loop.time()

    @property
    def busy(self) -> bool:
        """Whether answers are still to come, or to be taken."""
        return bool(self._asking or self._unsent)

    def start(self) -> None:
        """Serve."""
        self._paused = False
        self._timer = self._loop.call_later(self._idle, self._look)
        self._turn()

    def pause(self) -> None:
        """Read nothing until `start`; what is under way comes to its end."""
        self._paused = True
        self._read(False)
        if self._timer is not None:
            self._timer.cancel()

    def part(self) -> tuple[socket.socket, bytes] | None:
        """What another process needs to go on; None when that must not be, because answers are under way here."""
        return None if self.busy else (self._sock, bytes(self._unread))

    def finish(self) -> None:
        """Close once everything under way has been answered."""
        self._ended = True
        self._read(False)
        self._unread.clear()
        self._close_if_done()

    def close(self) -> None:
        """At once."""
        if not self._open:
            return
        self._open = False
        self._read(False)
        self._write(False)
        if self._timer is not None:
            self._timer.cancel()
        for asking in self._asking:
            asking.cancel()
        self._sock.close()
        self._closed(self)

    def _read(self, on: bool) -> None:
        if on and not self._reading:
            self._loop.add_reader(self._sock.fileno(), self._readable)
        elif self._reading and not on:
            self._loop.remove_reader(self._sock.fileno())
        self._reading = on

    def _write(self, on: bool) -> None:
        if on and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        elif self._writing and not on:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = on

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._ended = not data
        self._unread += data
        self._turn()

    def _whole(self) -> int:
        """Bytes of the first question, with its length, when it is there; else 0."""
        if len(self._unread) < 2:
            return 0
        size = 2 + int.from_bytes(self._unread[:2], "big")
        return size if len(self._unread) >= size else 0

    def _turn(self) -> None:
        """Answer some of the questions that are there, and see to what comes next."""
        self._turn_due = False
        for _ in range(BATCH):
            if not self._open or self._paused or self._crowded() or not (size := self._whole()):
                break
            message = bytes(self._unread[2:size])
            del self._unread[:size]
            self.last_heard = self._loop.time()
            answer = self._respond(message)
            if answer is None:
                self.close()
            elif isinstance(answer, bytes):
                self._say(answer)
            else:
                asking = asyncio.ensure_future(answer)
                self._asking.add(asking)
                asking.add_done_callback(self._answered)
        if not self._open or self._paused:
            return
        if self._whole() and not self._crowded():
            self._turn_due = True
            self._loop.call_soon(self._turn)
        self._read(not (self._ended or self._whole() or self._crowded()))
        self._close_if_done()

    def _crowded(self) -> bool:
        return len(self._asking) >= MOST_ASKING or len(self._unsent) > MOST_UNSENT

    def _answered(self, asking: asyncio.Future[bytes]) -> None:
        self._asking.discard(asking)
        if self._open and not asking.cancelled() and asking.exception() is None:
            self._say(asking.result())
        self._go_on()

    def _say(self, answer: bytes) -> None:
        self._unsent += len(answer).to_bytes(2, "big") + answer
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent:
            del self._unsent[:sent]
            self.last_heard = self._loop.time()
        self._write(bool(self._unsent))

    def _writable(self) -> None:
        self._flush()
        self._go_on()

    def _go_on(self) -> None:
        """What was in the way may be gone."""
        if self._open and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._open and self._ended and not self.busy and not self._whole():
            self.close()

    def _look(self) -> None:
        """The timer: close when nothing happened for so long; a question being asked on is not nothing."""
        now = self._loop.time()
        due = now if self._asking else self.last_heard
        if due + self._idle <= now:
            self.close()
        else:
            self._timer = self._loop.call_later(due + self._idle - now, self._look)
