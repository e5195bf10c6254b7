"""The agent's side of `hivemesh-resolver`: it runs, it is told what to answer, and it is known what it holds.

What stays true
- The resolver belongs to nobody: a daemon that ends leaves it answering, the next one finds it at its socket.
- One that died is started again and told everything at once; one that went deaf is ended for that; one of another
  version is replaced by one of ours, which takes over its sockets.
- It is told only what changed. `revision` counts the changes, and `holds` says whether one is in force.
- A node without a sandbox needs no resolver, and starts none.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hivemesh import __version__
from hivemesh.clock import Clock
from hivemesh.dns.tables import news
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NetworkID
from hivemesh.wire import codec
from hivemesh.wire.resolver import (
    LENGTH,
    Counted,
    Forget,
    FromResolver,
    Greeting,
    Names,
    Sandbox,
    Sync,
    Synced,
    ToResolver,
    framed,
)

log = logging.getLogger("hivemesh.names")

_SCRIPT = Path(sys.executable).with_name("hivemesh-resolver")
COMMAND = (sys.executable, *((str(_SCRIPT),) if _SCRIPT.exists() else ("-m", "hivemesh.dns.process")))
"""By the name that people look for in a list of processes, where it is installed beside us."""
START_TIMEOUT = 30.0
"""Seconds until a new resolver greets; it takes 0.2 on a quiet machine."""
LOOK_AGAIN = 0.005
"""Seconds between looks whether it listens yet."""
ANSWER_TIMEOUT = 5.0
"""Seconds after which a resolver that does not confirm what it was told counts as deaf."""
PROBE_PERIOD = 5.0
"""Seconds between questions whether it still listens to us."""
RETRY_FIRST, RETRY_LAST = 0.1, 5.0
"""Seconds until one that does not start is tried again, doubled each time."""
STEADY = 1.0
"""Seconds one must have served for its successor to be started without a pause."""
END_TIMEOUT = 2.0


class _Deaf(Exception):
    """The resolver runs, and does not answer us."""


@dataclass
class _Line:
    """A connection to a running resolver, and what was said on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: Greeting
    process: int  # pidfd
    names: dict[NetworkID, Names] = field(default_factory=dict)
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    knows: bool = False  # it answers already as an earlier daemon told it
    whole: bool = False  # it was told that this is all


class Resolver:
    """Owned by the node's network: `run` keeps it going, the rest says what it should answer."""

    def __init__(self, socket: Path, *, clock: Clock, command: Sequence[str] = COMMAND) -> None:
        """`command` is what starts one; it gets the socket's path, and `--replace` to take over from another."""
        self.failed: dict[str, str] = {}  # sandboxes that cannot ask, and why
        self.revision = 0
        self._socket = socket
        self._clock = clock
        self._command = tuple(command)
        self._names: dict[NetworkID, Names] = {}
        self._sandboxes: dict[str, Sandbox] = {}
        self._complete = False
        self._held = -1  # the revision that is confirmed on the present connection
        self._confirmed = 0  # the last number of a `Sync` that was answered there
        self.counted = Counted()  # as of a few seconds ago
        self._line: _Line | None = None
        self._wake = asyncio.Event()
        self._heard = asyncio.Condition()

    # --- what to answer ---------------------------------------------------------------------------------------------

    def answer(self, networks: Mapping[NetworkID, Names]) -> None:
        """The networks whose names are known here, all of them. The same objects cost nothing."""
        if any(self._names.get(n) is not names for n, names in networks.items()) or len(networks) != len(self._names):
            if dict(networks) != self._names:
                self._changed()
            self._names = dict(networks)

    def admit(self, sandbox: Sandbox) -> None:
        """A sandbox may ask from now on."""
        failed_before = self.failed.pop(sandbox.id, None) is not None  # then it is told, and tries, again
        if failed_before or self._sandboxes.get(sandbox.id) != sandbox:
            self._sandboxes[sandbox.id] = sandbox
            self._changed()

    def forget(self, sandbox: str) -> None:
        """A sandbox is gone; what was never admitted is fine."""
        if self._sandboxes.pop(sandbox, None) is not None:
            self.failed.pop(sandbox, None)
            self._changed()

    async def dismiss(self, sandbox: str) -> None:
        """A sandbox is about to go: on return the resolver holds none of its sockets, which would keep it alive."""
        if sandbox not in self._sandboxes:
            return
        self.forget(sandbox)
        revision, line = self.revision, self._line
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT), self._heard:
                # Where the connection broke meanwhile, the process has died, or it learns from the next one
                await self._heard.wait_for(lambda: self._held >= revision or self._line is not line)

    def complete(self) -> None:
        """What was admitted is all there is: whatever else the resolver knows, from another daemon, is over."""
        if not self._complete:
            self._complete = True
            self._changed()

    @property
    def sandboxes(self) -> int:
        """How many may ask."""
        return len(self._sandboxes)

    def holds(self, revision: int) -> bool:
        """Every answer from now on is as it was told up to `revision`."""
        return self._held >= revision or not self._needed()

    async def until_held(self, revision: int, seconds: float) -> bool:
        """Wait for that, for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._heard:
                await self._heard.wait_for(lambda: self.holds(revision))
        return self.holds(revision)

    def _changed(self) -> None:
        self.revision += 1
        self._wake.set()

    def _needed(self) -> bool:
        return bool(self._sandboxes)

    # --- keeping one alive ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; the resolver goes on with what it was told."""
        delay = RETRY_FIRST
        said = ""
        while True:
            while not self._needed() and not self._socket.exists():
                self._wake.clear()
                await self._wake.wait()
            began = self._clock.steady()
            try:
                async with self._connected() as line:
                    said = ""
                    await self._converse(line)
            except (HivemeshError, OSError, EOFError, msgspec.MsgspecError) as error:
                reason = str(error) or type(error).__name__
                if reason != said:
                    log.warning("hivemesh-resolver: %s", reason)
                said = reason
            if self._clock.steady() - began >= STEADY:
                delay = RETRY_FIRST
                continue
            await self._clock.sleep(delay)
            delay = min(2 * delay, RETRY_LAST)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Line]:
        """A connection to a resolver of our version, started if need be. Raises `Unavailable`."""
        line = await self._greeted()
        if line is None:
            if not self._needed():
                self._socket.unlink(missing_ok=True)
                raise Unavailable("has ended; it is started again for the next sandbox")
            line = await self._start()
        elif line.greeting.version != __version__:
            log.info("replacing hivemesh-resolver %s by %s", line.greeting.version, __version__)
            _close(line)
            line = await self._start("--replace", instead_of=line.greeting.pid)
            line.knows = True
        else:
            line.knows = True
            log.info("hivemesh-resolver runs already, as process %d", line.greeting.pid)
        try:
            yield line
        finally:
            _close(line)

    async def _start(self, *options: str, instead_of: int = 0) -> _Line:
        """A new one, belonging to nobody, whatever its version: there is no other to be had. Raises `Unavailable`."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        words = (*self._command, str(self._socket), *options)
        advice = f"try `{' '.join(self._command)} {self._socket}`"
        process = await asyncio.to_thread(_begin, words)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while True:
                    ended = process is None or select.select([process], [], [], 0)[0]
                    line = await self._greeted()
                    if line is not None and line.greeting.pid != instead_of:
                        log.info("hivemesh-resolver runs as process %d", line.greeting.pid)
                        return line
                    if line is not None:
                        _close(line)
                    if ended:
                        raise Unavailable(f"ends before it answers; {advice}")
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            raise Unavailable(f"does not start within {START_TIMEOUT:g} s; {advice}") from None
        finally:
            if process is not None:
                os.close(process)

    async def _greeted(self) -> _Line | None:
        """A connection to whoever listens at the socket; None when nobody does. Raises `Unavailable`."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                greeting = await _receive(reader)
            if not isinstance(greeting, Greeting):
                raise Unavailable(f"whoever listens at {self._socket} is no resolver")
            return _Line(reader, writer, greeting, os.pidfd_open(greeting.pid))
        except (EOFError, ConnectionError, ProcessLookupError):
            writer.close()  # it is ending
            return None
        except TimeoutError:
            writer.close()
            raise Unavailable(f"the one at {self._socket} does not say who it is; end it by hand") from None
        except BaseException:
            writer.close()
            raise

    # --- talking to it ----------------------------------------------------------------------------------------------

    async def _converse(self, line: _Line) -> None:
        """Until the connection breaks, which raises."""
        self._held, self._confirmed, self._line = -1, 0, line
        self._wake.set()
        helpers = [
            asyncio.create_task(self._tell(line), name="tell the resolver"),
            asyncio.create_task(self._listen(line), name="hear the resolver"),
        ]
        try:
            await asyncio.wait(helpers, return_when=asyncio.FIRST_COMPLETED)
            for helper in helpers:
                if helper.done():
                    helper.result()
        except _Deaf:
            log.error("hivemesh-resolver (process %d) does not answer any more: ending it", line.greeting.pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(line.process, signal.SIGKILL)
        except EOFError:
            log.warning("hivemesh-resolver (process %d) has ended", line.greeting.pid)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._held, self._line = -1, None
            async with self._heard:
                self._heard.notify_all()

    async def _tell(self, line: _Line) -> None:
        for number in itertools.count(1):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PROBE_PERIOD)
            self._wake.clear()
            revision, frames = self.revision, self._news(line)
            for frame in (*frames, Sync(number=number, whole=self._complete and not line.whole)):
                line.writer.write(framed(frame))
            line.whole = self._complete
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT), self._heard:
                    await line.writer.drain()
                    while self._confirmed < number:
                        await self._heard.wait()
                    self._held = revision
                    self._heard.notify_all()
            except TimeoutError:
                raise _Deaf from None

    def _news(self, line: _Line) -> list[ToResolver]:
        """What it does not know yet, from now on remembered as told.

        Until a manager has spoken we have the view on disk only: a resolver that runs on knows better.
        """
        known = line.names if line.knows and not self._complete else self._names
        gone = Forget(
            networks=tuple(line.names.keys() - known.keys()),
            sandboxes=tuple(line.sandboxes.keys() - self._sandboxes.keys()),
        )
        frames: list[ToResolver] = [gone] if gone.networks or gone.sandboxes else []
        # Names come first: a sandbox that may ask gets whole answers
        told = (news(line.names.get(key), names) for key, names in known.items())
        frames += [frame for frame in told if frame is not None]
        frames += [sandbox for key, sandbox in self._sandboxes.items() if line.sandboxes.get(key) != sandbox]
        line.names, line.sandboxes = dict(known), dict(self._sandboxes)
        return frames

    async def _listen(self, line: _Line) -> None:
        while True:
            frame = await _receive(line.reader)
            if not isinstance(frame, Synced):
                raise Unavailable(f"unexpected {type(frame).__name__} from the resolver")
            for sandbox, why in frame.failed.items():
                if self.failed.get(sandbox) != why:
                    log.warning("names cannot be resolved in sandbox %s: %s", sandbox, why)
                line.sandboxes.pop(sandbox, None)  # told again with whatever comes next
            self.failed = frame.failed
            self.counted = frame.counted
            async with self._heard:
                self._confirmed = frame.number
                self._heard.notify_all()

    # --- the end ----------------------------------------------------------------------------------------------------

    async def dissolve(self) -> None:
        """End it: the node leaves its swarm. `run` has ended."""
        with contextlib.suppress(HivemeshError, OSError):
            line = await self._greeted()
            if line is not None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(line.process, number)
                    if await _ended(line):
                        break
                _close(line)
        self._socket.unlink(missing_ok=True)


def _begin(words: Sequence[str]) -> int | None:
    """Start a process that outlives us and is no child of ours; its pidfd, None when it has ended already. It blocks.

    Not by the event loop, whose own end of a pipe would be left in the process for ever.
    """
    shell = ["sh", "-c", 'setsid "$@" >&2 & echo $!', "sh", *words]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    try:
        return os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return None


async def _receive(reader: asyncio.StreamReader) -> FromResolver:
    """Raises `EOFError` (`IncompleteReadError`) when the other side is gone."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return codec.unpack(await reader.readexactly(length), FromResolver)  # type: ignore[arg-type]


async def _ended(line: _Line) -> bool:
    """The connection ends with the process; what it still says does not matter."""
    try:
        async with asyncio.timeout(END_TIMEOUT):
            while await line.reader.read(4096):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def _close(line: _Line) -> None:
    line.writer.close()
    os.close(line.process)
