"""One resolver takes all over from another: tables and sockets (SCM_RIGHTS), while questions wait in the sockets.

```
new: connects, TakeOver ──▶  old: stops reading
     Names...             ◀──      tables
     Moved + sockets...   ◀──      sandboxes
     AllMoved + lock      ◀──
     Taken                ──▶      answers what it was asked already, and ends
     starts reading
```

Until `Taken` the old one keeps its sockets: if the new one dies, it reads on.
"""

import contextlib
import socket
from collections import deque
from pathlib import Path

from hivemesh.dns.resolver import Resolver
from hivemesh.dns.server import Sockets
from hivemesh.wire.codec import unpack
from hivemesh.wire.resolver import (
    LENGTH,
    MAX_FRAME,
    AllMoved,
    Frame,
    Greeting,
    Moved,
    Names,
    Taken,
    TakeOver,
    ToResolver,
    ToSuccessor,
    framed,
)

PATIENCE = 5.0
"""Seconds the other side may take for a step; nobody answers meanwhile."""
_MOST_FILES = 250
"""Sockets in one message; the kernel takes 253 (SCM_MAX_FD, net/scm.h)."""


class HandoverFailed(Exception):
    """The other side is gone, or says something else than expected."""


def give(line: socket.socket, resolver: Resolver, lock: int) -> None:
    """The old side, after `TakeOver`. Raises `HandoverFailed`, and then the resolver goes on as before.

    Otherwise its listeners are retired: they finish what they were asked. Connections with answers under way stay here.
    """
    line.settimeout(PATIENCE)
    listeners = list(resolver.listeners.values())
    for listener in listeners:
        listener.pause()
    try:
        for names in resolver.tables.values():
            _send(line, names)
        for listener in listeners:
            parts = [part for connection in listener.connections if (part := connection.part()) is not None]
            files = [listener.sockets.udp, listener.sockets.tcp, *(sock for sock, _ in parts)]
            moved = Moved(sandbox=listener.sandbox, unread=tuple(unread for _, unread in parts))
            _send(line, moved, [file.fileno() for file in files])
        _send(line, AllMoved(), [lock])
        answer = _Reader(line).read(ToResolver)
        if not isinstance(answer, Taken):
            raise HandoverFailed(f"expected to hear that all was taken, got {type(answer).__name__}")
    except (HandoverFailed, OSError, ValueError) as error:
        for listener in listeners:
            listener.start()
        raise HandoverFailed(f"the new resolver did not take over: {error}") from None
    for listener in listeners:
        listener.retire()


def take(path: Path, resolver: Resolver) -> tuple[socket.socket, int]:
    """The new side: fill `resolver` from the one that listens at `path`; its listeners still have to be started.

    Returns the connection, for `confirm`, and the lock. Raises `HandoverFailed`, `FileNotFoundError` or
    `ConnectionRefusedError` (nobody is there).
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(PATIENCE)
        line.connect(str(path))
        reader = _Reader(line)
        greeting = reader.read(ToSuccessor)
        if not isinstance(greeting, Greeting):
            raise HandoverFailed(f"whoever listens at {path} is no resolver")
        _send(line, TakeOver())
        while True:
            match reader.read(ToSuccessor):
                case Names() as names:
                    resolver.know(names)
                case Moved() as moved:
                    udp, tcp, *connections = reader.sockets(2 + len(moved.unread))
                    listener = resolver.adopt(moved.sandbox, Sockets(udp, tcp))
                    for sock, unread in zip(connections, moved.unread, strict=True):
                        listener.adopt(sock, unread)
                case AllMoved():
                    return line, reader.files(1)[0]
                case Greeting():
                    raise HandoverFailed(f"process {greeting.pid} greets twice")
    except (FileNotFoundError, ConnectionRefusedError):
        line.close()
        raise
    except (HandoverFailed, OSError, ValueError) as error:
        line.close()
        raise HandoverFailed(f"cannot take over from the resolver at {path}: {error}") from None


def confirm(line: socket.socket) -> None:
    """All was taken: the old one may go, if it has not yet."""
    with contextlib.suppress(OSError):
        _send(line, Taken())
    line.close()


def _send(line: socket.socket, frame: Frame, files: list[int] | None = None) -> None:
    data = memoryview(framed(frame))
    if files:
        # with the length alone: it is one piece, so all files have come once it is read
        socket.send_fds(line, [data[: LENGTH.size]], files)
        data = data[LENGTH.size :]
    line.sendall(data)


class _Reader:
    """Frames of a blocking socket, and the files that came along, in order."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._files: deque[int] = deque()

    def read(self, kind: object) -> object:
        """The next frame. Raises `HandoverFailed` when the other side is gone, `ValueError` for what is no frame."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if length > MAX_FRAME:
            raise HandoverFailed(f"a frame of {length} bytes")
        return unpack(self._exactly(length), kind)  # type: ignore[arg-type]

    def files(self, count: int) -> list[int]:
        """Those of the frame just read."""
        if len(self._files) < count:
            raise HandoverFailed(f"{count} sockets announced, {len(self._files)} came")
        return [self._files.popleft() for _ in range(count)]

    def sockets(self, count: int) -> list[socket.socket]:
        """Of the frame just read, non-blocking as they were."""
        made = [socket.socket(fileno=file) for file in self.files(count)]
        for sock in made:
            sock.setblocking(False)
        return made

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part, files, _, _ = socket.recv_fds(self._line, count - len(data), _MOST_FILES, socket.MSG_CMSG_CLOEXEC)
            self._files.extend(files)
            if not part:
                raise HandoverFailed("it closed the connection")
            data += part
        return bytes(data)
