"""`hivemesh-resolver`: a process that answers names in every sandbox of a node, told by the daemon what to answer.

It is apart from the daemon so that a restart or an upgrade of that loses no question: it goes on with what it knows.
"""

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from hivemesh import __version__
from hivemesh.dns import handover
from hivemesh.dns.forward import Forwarder
from hivemesh.dns.resolver import Resolver
from hivemesh.dns.server import Shared
from hivemesh.model.ids import NetworkID
from hivemesh.wire.codec import unpack
from hivemesh.wire.resolver import (
    LENGTH,
    MAX_FRAME,
    Counted,
    Forget,
    Greeting,
    Names,
    Renames,
    Sandbox,
    Sync,
    Synced,
    Taken,
    TakeOver,
    ToResolver,
    framed,
)

log = logging.getLogger("hivemesh.resolver")

LOCK_PATIENCE = 1.0
"""Seconds a predecessor that was told to end, or killed, may take."""
RETRY = 1.0
"""Seconds between attempts to listen where that failed."""
LAST_WORDS = 12.0
"""Seconds one that was replaced waits for servers it has asked: three, of four seconds each."""


class Failed(Exception):
    """Why the process cannot do its work; for whoever started it."""


class Process:
    """The daemon's connection, and what becomes of its frames."""

    def __init__(
        self, resolver: Resolver, lock: int, ending: asyncio.Event, counted: Callable[[], Counted] = Counted
    ) -> None:
        """Sets `ending` when another process has taken over."""
        self.replaced = False
        self._resolver = resolver
        self._lock = lock
        self._ending = ending
        self._counted = counted
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._accepted = 0
        self._daemon = 0  # the newest connection that told us something

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. The first word on a newer one makes that the daemon's, and this one is closed."""
        self._accepted += 1
        number = self._accepted
        self._writers[number] = writer
        try:
            writer.write(framed(Greeting(version=__version__, pid=os.getpid())))
            await self._converse(number, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it is gone, and nothing changes
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("the daemon says what is not understood, its connection is closed: %s", error)
        finally:
            del self._writers[number]
            writer.close()

    async def _converse(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        networks: set[NetworkID] = set()
        sandboxes: set[str] = set()
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            frame: ToResolver = unpack(await reader.readexactly(length), ToResolver)  # type: ignore[arg-type]
            if isinstance(frame, TakeOver):
                self._hand_over(writer)
                return
            if number < self._daemon:
                return
            if self._daemon != number and self._daemon in self._writers:
                self._writers[self._daemon].close()
            self._daemon = number
            match frame:
                case Names():
                    self._resolver.know(frame)
                    networks.add(frame.network)
                case Renames():
                    if frame.network not in networks:
                        raise ValueError(f"changes of the names of network {frame.network}, which were not told before")
                    self._resolver.rename(frame)
                case Sandbox():
                    self._resolver.admit(frame)
                    sandboxes.add(frame.id)
                case Forget():
                    self._resolver.forget(frame)
                    networks.difference_update(frame.networks)
                    sandboxes.difference_update(frame.sandboxes)
                case Sync():
                    if frame.whole:
                        self._resolver.keep_only(networks, sandboxes)
                    self._resolver.retry()
                    synced = Synced(number=frame.number, failed=dict(self._resolver.failed), counted=self._counted())
                    writer.write(framed(synced))
                    await writer.drain()
                case Taken():
                    raise ValueError("nothing was being handed over")
            await asyncio.sleep(0)  # questions get their turn between large tables

    def _hand_over(self, writer: asyncio.StreamWriter) -> None:
        """Without a turn of the loop: nobody reads the sockets until one of the two does."""
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as line:
            try:
                handover.give(line, self._resolver, self._lock)
            except handover.HandoverFailed as error:
                log.error("%s", error)
                return
            finally:
                line.setblocking(False)  # as the loop left it: the file is the same
        self.replaced = True
        self._ending.set()

    async def retry(self) -> None:
        """Try for ever to listen where that failed: the daemon may have nothing new to say."""
        while True:
            await asyncio.sleep(RETRY)
            self._resolver.retry()

    def hang_up(self) -> None:
        """Close all connections."""
        for writer in self._writers.values():
            writer.close()


async def run(path: Path, *, replace: bool) -> None:
    """Until SIGTERM, or until another takes over. Raises `Failed`."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    forwarder = Forwarder()
    shared = Shared(forwarder)
    resolver = Resolver(shared, forwarder.forget)

    def counted() -> Counted:
        took = forwarder.took
        return Counted(
            udp=shared.udp,
            tcp=shared.tcp,
            unanswered=forwarder.unanswered,
            buckets=tuple(took.counts),
            seconds=took.total,
        )

    process, listening = _begin(path, resolver, ending, counted, replace=replace)
    server = await asyncio.start_unix_server(process.serve, sock=listening)
    retrying = asyncio.create_task(process.retry(), name="retry")
    try:
        await ending.wait()
        server.close()
        process.hang_up()
        if process.replaced:
            await _finish(resolver)
        else:
            _remove(path)
    finally:
        retrying.cancel()
        resolver.close()
        await forwarder.close()


async def _finish(resolver: Resolver) -> None:
    """Pass on what other servers still answer to questions asked here."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS):
            for listener in resolver.listeners.values():
                await listener.finished.wait()


def _begin(
    path: Path, resolver: Resolver, ending: asyncio.Event, counted: Callable[[], Counted], *, replace: bool
) -> tuple[Process, socket.socket]:
    """Everything the predecessor had, if there is one and it is to be replaced; and a socket for the daemon."""
    line = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not replace:
                raise FileNotFoundError
            line, lock = handover.take(path, resolver)
        except (FileNotFoundError, ConnectionRefusedError):
            lock = _only_one(path)
        # In its place in one step: whoever looks for a resolver meanwhile finds one
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        listening = _listen(fresh)
        os.rename(fresh, path)
    except OSError as error:
        raise Failed(f"cannot listen at {path}: {error.strerror or error}") from None
    except handover.HandoverFailed as error:
        raise Failed(f"{error}; end the old one, and start this one without --replace") from None
    if line is not None:
        handover.confirm(line)
    for listener in resolver.listeners.values():
        listener.start()
    return Process(resolver, lock, ending, counted), listening


def _listen(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)  # 0600 from its first moment
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    listening.listen()
    return listening


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _only_one(path: Path) -> int:
    """A lock for as long as this process, or one it hands it to, lives. Raises `Failed` when another has it."""
    until = time.monotonic() + LOCK_PATIENCE
    while True:
        lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                # whoever had it may have removed the file on its way out
                if os.fstat(lock).st_ino == os.stat(_lock_of(path)).st_ino:
                    return lock
        except BlockingIOError:
            pass
        os.close(lock)
        if time.monotonic() > until:
            raise Failed(f"a resolver runs at {path} already: --replace takes over from it")
        time.sleep(0.01)


def _remove(path: Path) -> None:
    """Ours: nobody else can be there while we hold the lock."""
    for ours in (path, _lock_of(path)):
        with contextlib.suppress(FileNotFoundError):
            ours.unlink()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="hivemesh-resolver",
        description="Answer names in the sandboxes of this node. hivemeshd starts it and tells it what to answer.",
    )
    parser.add_argument("socket", type=Path, help="where the daemon speaks to it")
    parser.add_argument("--replace", action="store_true", help="take over from the one that runs, losing no question")
    parser.add_argument("--version", action="version", version=f"hivemesh-resolver {__version__}")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two for each sandbox, and connections
    try:
        uvloop.run(run(options.socket.absolute(), replace=options.replace))
    except Failed as error:
        sys.exit(f"hivemesh-resolver: {error}")


if __name__ == "__main__":
    main()
