"""Following processes that are not our children: a pidfd tells when one ends, and names it without any doubt.

Neither polling nor an open stream to the engine is needed to learn that a container died, so that the engine's
service may sleep while containers run.
"""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass


@dataclass(slots=True)
class _Watched:
    pid: int
    fd: int
    ended: asyncio.Event


class Processes:
    """Processes by a key of the caller's (a container's id)."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._listeners: set[asyncio.Queue[str]] = set()

    def watch(self, key: str, pid: int) -> bool:
        """Follow `pid` from now on; False when there is no such process (any more)."""
        known = self._watched.get(key)
        if known and known.pid == pid:
            return True
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        self.forget(key)
        watched = _Watched(pid, fd, asyncio.Event())
        self._watched[key] = watched
        asyncio.get_running_loop().add_reader(fd, self._ended, key)
        return True

    def running(self, key: str) -> bool:
        """`key` is followed and has not ended."""
        known = self._watched.get(key)
        return known is not None and not known.ended.is_set()

    async def wait(self, key: str) -> None:
        """Until the process ends; at once when none is followed under `key`."""
        known = self._watched.get(key)
        if known:
            await known.ended.wait()

    def send(self, key: str, number: int) -> None:
        """Signal the process; one that is gone does not mind."""
        known = self._watched.get(key)
        if known and not known.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(known.fd, number)

    def listen(self) -> asyncio.Queue[str]:
        """A queue that gets the key of every process that ends from now on, until `unlisten`."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.add(queue)
        return queue

    def unlisten(self, queue: asyncio.Queue[str]) -> None:
        self._listeners.discard(queue)

    def forget(self, key: str) -> None:
        """Stop following; whoever waits is released."""
        known = self._watched.pop(key, None)
        if known:
            self._close(known)

    def close(self) -> None:
        """Forget all."""
        for key in list(self._watched):
            self.forget(key)

    def _ended(self, key: str) -> None:
        known = self._watched[key]
        self._close(known)
        for queue in self._listeners:
            queue.put_nowait(key)

    def _close(self, known: _Watched) -> None:
        if not known.ended.is_set():
            asyncio.get_running_loop().remove_reader(known.fd)
            os.close(known.fd)
            known.ended.set()


def signal_number(name: str, default: int = signal.SIGTERM) -> int:
    """`SIGTERM`, `term`, `15`, `SIGRTMIN+3` to a number; empty gives `default`. Raises `ValueError`."""
    text = name.strip().upper()
    if not text:
        return default
    if text.isdecimal():
        return int(signal.Signals(int(text)))
    base, _, offset = text.removeprefix("SIG").partition("+")
    try:
        return int(signal.Signals["SIG" + base]) + (int(offset) if offset else 0)
    except KeyError:
        raise ValueError(f"unknown signal {name!r}") from None
