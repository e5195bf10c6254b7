"""Many waits of a few lengths, nearly all of which end before their time: one timer of the loop for each length."""

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Timeouts(Generic[T]):
    """`late` is called with what was not dropped in time."""

    def __init__(self, late: Callable[[T], None]) -> None:
        self._late = late
        self._due: dict[float, dict[T, float]] = {}  # by length: in the order of their moments

    def add(self, waiting: T, seconds: float, now: float) -> None:
        """Count from `now`, as `time.monotonic` has it."""
        queue = self._due.get(seconds)
        if queue is None:
            queue = self._due[seconds] = {}
            asyncio.get_running_loop().call_later(seconds, self._look, seconds)
        queue[waiting] = now + seconds

    def drop(self, waiting: T, seconds: float) -> None:
        """It need not be there."""
        queue = self._due.get(seconds)
        if queue is not None:
            queue.pop(waiting, None)

    def _look(self, seconds: float) -> None:
        queue = self._due[seconds]
        now = time.monotonic()
        late = []
        for waiting, due in queue.items():
            if due > now:
                break
            late.append(waiting)
        for waiting in late:
            del queue[waiting]
        first = next(iter(queue.values()), None)
        if first is None:
            del self._due[seconds]
        else:
            asyncio.get_running_loop().call_later(first - now, self._look, seconds)
        for waiting in late:
            self._late(waiting)
