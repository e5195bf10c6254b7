"""Time as an argument: the real clock, and one that tests turn by hand."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for stamps, steady time for how long something takes, and sleeping."""

    def now(self) -> float:
        """Unix seconds. Somebody may set the machine's clock at any moment."""
        ...

    def steady(self) -> float:
        """Seconds since some moment: only their differences mean anything, and those are right."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Stands still until told; sleepers wake when their time has come."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self._now + seconds, event))
        await event.wait()

    def advance(self, seconds: float) -> None:
        """Move on by `seconds` and wake whoever is due."""
        self._now += seconds
        due = [s for s in self._sleepers if s[0] <= self._now]
        self._sleepers = [s for s in self._sleepers if s[0] > self._now]
        for _, event in due:
            event.set()
