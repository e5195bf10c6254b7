"""Answers of other name servers, for as long as they hold: bounded in bytes, the least recently used go first.

In front of the answers by question stand finished messages by the exact bytes of a query: with the TTLs of this very
second, in the writing of who asked. Serving one of these is a look into a dictionary.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hivemesh.wire.dnsanswer import Record, aged, kept_form, lifetime

LIMIT = 16 << 20
"""Bytes of memory for all answers, roughly."""
ENTRY = 600
"""Bytes that an answer costs beside its own, measured."""
LONGEST = 86_400
LONGEST_NEGATIVE = 10_800
"""Seconds; RFC 2308, 5: one to three hours are found to work well."""
FAILED_FOR = 2.0
"""Seconds for which a question that nobody could answer is not asked again (RFC 9520, 3.2, asks for 1 at least)."""
MAX_FAILED = 4096


@dataclass(slots=True)
class _Kept:
    answer: bytes
    ttls: tuple[tuple[int, int], ...]
    born: float
    until: float
    size: int


class Cache:
    """Answers by key: whatever bytes tell questions and those who were asked apart."""

    def __init__(self, limit: int = LIMIT, now: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._now = now
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._size = 0
        self.ready: dict[bytes, tuple[bytes, float]] = {}
        """Finished messages without their ids, and the moment from which each is out of date."""
        self._ready_size = 0
        self._failed: dict[bytes, float] = {}

    @property
    def size(self) -> int:
        """Bytes in use, roughly."""
        return self._size + self._ready_size

    def keep(self, key: bytes, answer: bytes, records: list[Record]) -> None:
        """Remember an answer as long as it says, if it may be remembered at all."""
        self._drop(key)
        seconds = lifetime(answer, records, most=LONGEST, most_negative=LONGEST_NEGATIVE)
        if not seconds:
            return
        kept, ttls = kept_form(answer, records)
        now = self._now()
        size = ENTRY + len(key) + len(kept) + 100 * len(ttls)
        self._kept[key] = _Kept(kept, ttls, now, now + seconds, size)
        self._size += size
        while self._size > self._limit:
            self._drop(next(iter(self._kept)))

    def find(self, key: bytes) -> tuple[bytes, float] | None:
        """The answer with its TTLs counted down, and until when these bytes hold."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        now = self._now()
        if now >= kept.until:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        age = int(now - kept.born)
        return aged(kept.answer, kept.ttls, age), min(kept.born + age + 1, kept.until)

    def prepare(self, exact: bytes, message: bytes, until: float) -> None:
        """Have `message` (without an id) ready for a query of exactly these bytes."""
        size = ENTRY + len(exact) + len(message)
        if self._ready_size + size > self._limit // 4:
            self.ready.clear()  # what is in use comes back at its next question
            self._ready_size = 0
        if exact not in self.ready:
            self._ready_size += size
        self.ready[exact] = (message, until)

    def fail(self, key: bytes) -> None:
        """Remember for a moment that nobody had an answer."""
        if len(self._failed) >= MAX_FAILED:
            self._failed.clear()
        self._failed[key] = self._now() + FAILED_FOR

    def failed(self, key: bytes) -> bool:
        """Whether nobody had an answer a moment ago."""
        until = self._failed.get(key)
        if until is None:
            return False
        if self._now() < until:
            return True
        del self._failed[key]
        return False

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
